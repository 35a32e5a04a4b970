"""What kind of picture a file holds, by its first bytes; and for kinds that are not read here, what opens them."""

from __future__ import annotations

import re

from PIL import Image

from . import phone

START = 512  # bytes that are enough to tell

# Only formats that decode without running another program (as EPS would) and that announce themselves.
_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "BMP": rb"BM....\0\0\0\0",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PPM": rb"P[1-6f]\s",
    "QOI": rb"qoif",
    "JXL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
}
_UNREAD = {
    rb"8BPS\0[\x01\x02]": "a Photoshop document; export it as PNG or TIFF",
    rb"gimp xcf": "a GIMP document; export it as PNG",
    rb"v/1\x01[\0-\x0f]|#\?(RADIANCE|RGBE)": (
        "a high dynamic range picture (EXR or HDR); develop it to JPEG, PNG or TIFF"
    ),
    rb"II\xbc[\0\x01]": "JPEG XR cannot be read here; `JxrDecApp` of jxrlib turns it into TIFF",
    rb"DDS ": "a texture (DDS); export it as PNG",
    rb"\0\0\x01\0[\x01-\xff]\0": "an icon (ICO); export it as PNG",
    rb"BPG\xfb": "BPG cannot be read here; `bpgdec` turns it into PNG",
    rb"FUJIFILMCCD-RAW|II(RO|RS|U\0)": "camera raw; develop it to JPEG, PNG or TIFF",
}
# Brands of ISO base media files (their first box names them), the most telling first.
_BRANDS = {
    "AVIF": "avif avis avio MA1A MA1B",
    "HEIF": (
        "heic heix heim heis hevc hevx hevm hevs heif mif1 mif2 mif3 msf1 miaf "
        "1pic MiHB vvic vvis evbi j2ki jpeg jpgs avci avcs"
    ),
    "JXL": "jxl",
    "camera raw; develop it to JPEG, PNG or TIFF": "crx",
    "a video; save a frame of it as JPEG or PNG": (
        "qt isom iso2 iso4 iso5 iso6 mp41 mp42 avc1 M4V dash 3gp4 3gp5 3gp6 f4v"
    ),
}
_RAW = re.compile(r"\.(3fr|arw|cr[23]|dng|erf|kdc|nef|nrw|orf|pef|raf|raw|rw2|sr2|srw)", re.IGNORECASE)
NOT_A_PICTURE = "not a picture"  # why a file is skipped that neither is one nor is named as one


class Unusable(Exception):
    """Why a file cannot be used, in words."""


def identify(start: bytes, suffix: str) -> str:
    """Name the format of a file that begins with `start`, as PIL has it. Raises Unusable."""
    if not start:
        raise Unusable("empty file")
    if _RAW.fullmatch(suffix):  # most are TIFF files whose first picture is a thumbnail
        raise Unusable("camera raw; develop it to JPEG, PNG or TIFF")
    for format, magic in _MAGIC.items():
        if re.match(magic, start, re.DOTALL):
            return _readable(format)
    for magic, reason in _UNREAD.items():
        if re.match(magic, start, re.DOTALL):
            raise Unusable(reason)
    brands = _brands(start)
    for answer, known in _BRANDS.items():
        if brands & set(known.split()):
            if answer == "AVIF" or answer in phone.PLUGINS:
                return _readable(answer)
            raise Unusable(answer)
    raise Unusable(NOT_A_PICTURE if not named_as(suffix) else f"not a picture, though named {suffix}")


def _readable(format: str) -> str:
    """Return the format itself. Raises Unusable where its plugin is missing."""
    if format in phone.PLUGINS and (why := phone.unread(format)):
        raise Unusable(why)
    return format


def _brands(start: bytes) -> set[str]:
    """Read the major and compatible brands of an ISO base media file; none of anything else."""
    if start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    places = [8, *range(16, end, 4)]
    return {start[place : place + 4].decode("latin-1").strip() for place in places}


def named_as(suffix: str) -> str | None:
    """Find the format that a file name claims."""
    if suffix.lower() in phone.ENDINGS:
        return phone.ENDINGS[suffix.lower()]
    Image.init()
    return Image.registered_extensions().get(suffix.lower())
