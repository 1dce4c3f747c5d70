"""Images: pulled from a registry by skopeo, unpacked by umoci, kept as one read-only erofs file per manifest digest.

What is pulled is a stranger's: digests are verified, layers are read before they are unpacked, sizes are bounded, and
a failed pull leaves nothing behind. Containers share the file; nothing here knows of containers.
"""

from runtime.images.build import Limits
from runtime.images.image import Image, ImageConfig, Progress
from runtime.images.store import ImageStore

__all__ = ["Image", "ImageConfig", "ImageStore", "Limits", "Progress"]
