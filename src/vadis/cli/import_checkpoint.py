"""`vadis import KIND SRC DIR`."""

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, output_folder, print_json, say
from vadis.cli.writing import Out
from vadis.errors import FileError, VadisError
from vadis.records import parse_yaml


@dataclass(frozen=True)
class Import:
    """Turn a published checkpoint into a folder that vadis loads; every tensor must find its place.

    vadis import motionmillion-fsq fsq.pth models/mm-fsq --option mean=mean.npy --option std=std.npy
    """

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """Layout of the checkpoint, e.g. motionmillion-fsq; an unknown one lists them all."""
    source: Annotated[Positional[str], arg(metavar="SRC")]
    """The checkpoint: a file, or a folder of a published layout."""
    target: Annotated[Positional[str | None], arg(metavar="DIR")] = None
    """Folder to write: config.json, model.safetensors and a card."""
    out: Out = ()
    """The same as DIR."""
    option: tuple[str, ...] = ()
    """What the checkpoint doesn't say, as key=value, e.g. mean=mean.npy."""
    json: bool = False
    """Print the tensors as JSON."""

    def run(self) -> None:
        source, target = check_input(self.source), output_folder(self.target, self.out, "vadis import")
        if target.is_dir() and any(target.iterdir()):
            raise FileError(f"{target} exists and is not empty; name a new folder.")
        options: dict[str, Any] = {}
        for text in self.option:
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise VadisError(f"can't read --option {text!r}; expected key=value.")
            options[name] = _value(value)
        import vadis

        try:
            component = vadis.import_checkpoint(self.kind, source, **options)
        except TypeError as error:
            if not options:
                raise
            raise VadisError(f"{self.kind} doesn't take these options ({error}).") from None
        component.save_pretrained(target)
        rows = [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
             "sum": float(tensor.double().sum())}
            for name, tensor in component.state_dict().items()
        ]  # fmt: skip
        if self.json:
            print_json(rows)
        else:
            for row in rows:
                print(f"{row['name']:<60} {row['dtype']:<9} {row['shape']!s:<20} {row['sum']:+.6g}")
        total = sum(tensor.numel() for tensor in component.state_dict().values())
        say(f"{len(rows)} tensors, {total:,} values → {target}; load it with vadis.load({str(target)!r})")


def _value(text: str) -> Any:
    """A number, a list of numbers or a word."""
    try:
        value = parse_yaml(text, "the option", VadisError)
    except VadisError:  # a name such as C:\x or *.npy
        return text
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, str | int | float | None) else text
