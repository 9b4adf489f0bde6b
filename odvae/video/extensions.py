"""Supported video and image file extensions."""

VIDEO_EXTENSIONS = (
    "mp4", "webm", "mkv", "mov", "avi", "m4v", "gif", "mpg", "mpeg", "m2v", "vob", "ts", "mts", "m2ts", "flv", "wmv",
    "asf", "3gp", "3g2", "ogv", "mxf",
)  # fmt: skip

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "avif")
