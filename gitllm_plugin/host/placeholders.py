"""Heavy packages that LAVIS imports at the top of its modules and a GIT-LLM run never uses.

While the body of a LAVIS module runs, an import of one of ``PACKAGES`` that cannot be satisfied is answered
with a ``Placeholder``; using it raises an ImportError that names the package to install. A few that can be satisfied
are put off until they are used.

The placeholder goes to LAVIS only. It never enters ``sys.modules``, so ``importlib.util.find_spec`` and
``try: import cv2`` in other libraries (transformers, peft, timm probe so) keep telling the truth. That is why
this is an override of ``__import__`` that looks at who imports, and not an entry of ``sys.meta_path``.
"""

import builtins
import importlib
import sys
import types

# Top-level module -> what to give pip.
RELEASE_PACKAGES = {
    "cv2": "opencv-python-headless",
    "decord": "decord",
    "fairscale": "fairscale",
    "matplotlib": "matplotlib",
    "pycocoevalcap": "pycocoevalcap",
    "pycocotools": "pycocotools",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "spacy": "spacy",
}
GIT_MAIN_PACKAGES = {
    "IPython": "ipython",
    "diffusers": "diffusers",
    "easydict": "easydict",
    "h5py": "h5py",
    "magic": "python-magic",
    "moviepy": "moviepy",
    "nltk": "nltk",
    "open3d": "open3d",
    "opendatasets": "opendatasets",
    "termcolor": "termcolor",
    "torchaudio": "torchaudio",
}
PACKAGES = RELEASE_PACKAGES | GIT_MAIN_PACKAGES

# Slow to import, and LAVIS does it at the top for one function that GIT-LLM does not call: it comes when it is used.
LATE_PACKAGES = frozenset({"pandas"})

# Calls that LAVIS makes while its modules are being imported; they configure the absent package, so there is
# nothing to do.
_CALLED_AT_IMPORT = {"decord.bridge.set_bridge"}

standing_in: dict[str, str] = {}
"""Top-level modules that were answered with a placeholder so far -> why the real one did not load."""


class Placeholder(types.ModuleType):
    """Stands in for an absent module or for something inside it; only looking up names in it works."""

    def __getattr__(self, name: str):
        """Give the placeholder of ``name`` inside this one; special names are absent, as in any module."""
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"placeholder of '{self.__name__}' has no attribute '{name}'")
        inner = Placeholder(f"{self.__name__}.{name}")
        setattr(self, name, inner)
        return inner

    def __call__(self, *args, **kwargs):
        """Refuse, unless LAVIS makes this very call while being imported."""
        if self.__name__ not in _CALLED_AT_IMPORT:
            raise missing_package_error(self.__name__)

    def __mro_entries__(self, bases: tuple) -> tuple:
        """Let LAVIS define a subclass; making an instance of it is refused."""

        def refuse(cls, *args, **kwargs):
            raise missing_package_error(self.__name__)

        return (type(self.__name__.rpartition(".")[2], (), {"__new__": refuse}),)

    def __instancecheck__(self, instance) -> bool:
        """Nothing is an instance of a class that is not there."""
        return False

    def __or__(self, other):
        """Let an annotation such as ``placeholder | None`` be evaluated."""
        return self

    __ror__ = __or__

    def __getitem__(self, item):
        """Let an annotation such as ``placeholder[int]`` be evaluated."""
        return self


class LatePackage(types.ModuleType):
    """Stands for a package until something in it is looked up."""

    def __getattr__(self, name: str):
        """Give ``name`` of the package, which is imported now.

        Raises:
            ImportError: the package is not installed.
        """
        return getattr(importlib.import_module(self.__name__), name)


def missing_package_error(dotted_name: str) -> ImportError:
    """Give the error for a use of ``dotted_name``, naming the package that has it and why it is not there."""
    top = dotted_name.partition(".")[0]
    return ImportError(
        f"LAVIS uses '{dotted_name}' here, and '{top}' is not available ({standing_in[top]}). "
        f"Install it: pip install {PACKAGES[top]}",
        name=top,
    )


def install() -> None:
    """Answer, from now on, imports of absent packages in the bodies of LAVIS's modules; once is enough."""
    if not any(isinstance(finder, _LavisFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LavisFinder())


class _LavisFinder:
    """Finds LAVIS's modules where Python would, and runs their bodies with placeholders available."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "lavis":
            return None
        spec = _find_elsewhere(name, path, target)
        if spec is not None and spec.loader is not None:
            run_body = spec.loader.exec_module

            def exec_module(module):
                with _PlaceholderImports():
                    run_body(module)

            spec.loader.exec_module = exec_module
        return spec


def _find_elsewhere(name, path, target):
    for finder in list(sys.meta_path):
        spec = None if isinstance(finder, _LavisFinder) else finder.find_spec(name, path, target)
        if spec is not None:
            return spec
    return None


class _PlaceholderImports:
    """While entered, ``import`` statements of LAVIS's modules get a placeholder for an absent package."""

    def __enter__(self):
        # LAVIS's modules import one another: the outermost body installs the override for all of them.
        self.outermost = not hasattr(builtins.__import__, "placeholders_for_lavis")
        if self.outermost:
            self.previous = builtins.__import__
            self.ours = _import_with_placeholders(self.previous)
            builtins.__import__ = self.ours

    def __exit__(self, *exception):
        # A library imported meanwhile may have put an override of its own on top; that one stays.
        if self.outermost and builtins.__import__ is self.ours:
            builtins.__import__ = self.previous


def _import_with_placeholders(real_import):
    def import_or_placeholder(name, globals=None, locals=None, fromlist=(), level=0):
        top = name.partition(".")[0]
        if name in LATE_PACKAGES and name not in sys.modules and not fromlist and not level and _is_lavis(globals):
            return LatePackage(name)
        if level or top not in PACKAGES or not _is_lavis(globals):
            return real_import(name, globals, locals, fromlist, level)
        try:
            return real_import(name, globals, locals, fromlist, level)
        except (ImportError, OSError) as error:  # OSError: a shared library the package needs is missing
            standing_in[top] = _reason(top, error)
            return Placeholder(name if fromlist else top)  # what `from a.b import c` and `import a.b` bind

    import_or_placeholder.placeholders_for_lavis = True
    return import_or_placeholder


def _is_lavis(module_globals) -> bool:
    return bool(module_globals) and str(module_globals.get("__name__")).partition(".")[0] == "lavis"


def _reason(top: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return "not installed"
    return f"installed, but it does not load: {error}"
