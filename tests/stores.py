"""A place elsewhere for tests, in memory: it counts what it is asked for, and may be cut off or delete nothing."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

SECRET = "AKIA-not-for-anyones-eyes"


class Counted(MemoryFileSystem):
    """Memory under counted://; ``read`` is the bytes that were handed out, ``asked`` how often."""

    protocol = "counted"
    store, pseudo_dirs = {}, [""]
    read, asked, down, keeps = 0, 0, False, False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("counted://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        found = super().cat_file(self._reached(path), start, end, **options)
        type(self).read, type(self).asked = self.read + len(found), self.asked + 1
        return found

    def info(self, path, **options):
        return super().info(self._reached(path), **options)

    def put_file(self, lpath, rpath, **options):
        return super().put_file(lpath, self._reached(rpath), **options)

    def rm_file(self, path):
        if self.keeps:
            raise PermissionError(f"{SECRET} may not delete")
        super().rm_file(self._reached(path))

    def _reached(self, path):
        if self.down:
            raise ConnectionError(f"no route to the place for {SECRET}")
        return path


fsspec.register_implementation("counted", Counted, clobber=True)
