"""Real images made of Debian packages, and a real registry to push them to.

`recipes` says what is in each image, `build` makes it (mmdebstrap, then umoci) and keeps it in a cache, `registry` runs
docker-registry on loopback. The end-to-end tests and `make demo` use the same images.
"""
