"""Every limit that protects a user, in one place; `jingdu doctor` prints them."""

MAX_PIXELS = 50_000_000
"""Pixels of an image, checked before it is decoded."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded, by content and not by name."""
HUB_SECONDS = 15.0
"""Time within which a hub must have begun to answer."""
MAX_EXPANSION = 20
"""Uncompressed over compressed size of a weights archive; more is a zip bomb."""
