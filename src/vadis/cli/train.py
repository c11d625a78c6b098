"""`vadis train RECIPE key=value …`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_output_folder


@dataclass(frozen=True)
class Train:
    """Train what a recipe describes; every setting of the recipe can be changed by key=value.

    vadis train                                  # lists the recipes that come with vadis
    vadis train mini-tokenizer steps=1000 optimizer.lr=1e-4 --out runs/mine
    vadis train my-recipe.yaml
    """

    recipe: Annotated[Positional[str | None], arg(metavar="RECIPE")] = None
    """A YAML file, or the name of a recipe that comes with vadis."""
    settings: Annotated[Positional[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """Settings to change, dotted for groups: optimizer.lr=1e-4."""
    out: str | None = None
    """Folder of checkpoints, logs and the trained model; the same as run=FOLDER."""
    resume: Literal["no", "auto"] | None = None
    """auto continues from the checkpoint in the folder, if there is one; the same as resume=auto."""

    def run(self) -> None:
        from vadis.config import find_recipe, recipe_names

        if self.recipe is None:
            print(*recipe_names(), sep="\n")
            return
        find_recipe(self.recipe)
        from vadis.training import train

        settings = [*self.settings]
        if self.out is not None:
            check_output_folder(self.out)
            settings.append(f"run={self.out}")
        if self.resume is not None:
            settings.append(f"resume={self.resume}")
        print(train(self.recipe, settings))
