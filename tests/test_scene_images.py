"""Scene images: what is read, what is refused, and the prompts made of them."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vadis.errors import FileError, ModelError, VadisError
from vadis.images import load_image
from vadis.language.vla.prompts import Prompt, ScenePacker, VisionFacts, collate

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("transformers")


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def word_tokenizer(template: bool = False) -> Any:
    """A byte-level tokenizer of 256 bytes and Qwen's vision markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    names = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    if template:
        tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
    return tokenizer


def facts(tokenizer: Any) -> VisionFacts:
    image, start, end = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
    return VisionFacts(image, start, end, 16, 2, 2, "qwen3_5")


@pytest.fixture(scope="module")
def packer() -> ScenePacker:
    tokenizer = word_tokenizer(template=True)
    return ScenePacker(tokenizer, facts(tokenizer))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


# ---- reading


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_ordinary_files_become_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scene.{suffix}"
    picture().save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (64, 48)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    loaded = load_image(picture(mode=mode))
    assert loaded.mode == "RGB" and loaded.size == (64, 48)


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 32), (250, 10, 10))
    red.convert("CMYK").save(tmp_path / "red.jpg", quality=95)
    assert np.abs(np.asarray(load_image(tmp_path / "red.jpg")).mean((0, 1)) - [250, 10, 10]).max() < 12


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (0, 0, 4, 8))
    rgba.save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, [0, 7]].tolist() == [[0, 0, 255], [255, 255, 255]]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 4, 8))
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "p.png"))[0, [0, 7]].tolist() == [[0, 0, 255], [255, 255, 255]]


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "deep.png"))[..., 0].ravel(), np.arange(256))
    with pytest.raises(FileError, match="32 bits"):
        load_image(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = picture(64, 48)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert load_image(tmp_path / "phone.jpg").size == (48, 64)


def test_a_hundred_megapixels_are_refused_by_the_header(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(10_000, 10_000))  # nothing there to decode: only the header is read
    with pytest.raises(FileError, match="100 megapixels"):
        load_image(tmp_path / "huge.png")
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    with pytest.raises(FileError, match="megapixels"):
        load_image(tmp_path / "bomb.png")


def test_bad_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    picture(400, 300).save(whole)
    pages: dict[str, tuple[bytes | None, str]] = {
        "missing.png": (None, "no image at"),
        "empty.png": (b"", "empty"),
        "words.png": (b"walk to the red box", "not a readable image"),
        "cut.jpg": (whole.read_bytes()[:3000], "damaged"),
        "zero.png": (png_header(0, 10), "."),
        "strip.png": (png_header(9000, 3), "strip"),
    }
    for name, (content, message) in pages.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=message):
            load_image(tmp_path / name)
    with pytest.raises(FileError, match="is not a file"):
        load_image(tmp_path)
    with pytest.raises(FileError, match="no image at"):
        load_image("scene\0.png")


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (v, 0, 0)) for v in (0, 120, 250)]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(FileError, match="3 pictures"):
            load_image(tmp_path / f"a.{suffix}")


def test_every_cut_of_a_file_reads_or_says_why(tmp_path: Path) -> None:
    picture(32, 24).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for length in range(0, len(content) - 20, 97):
        (tmp_path / "part.png").write_bytes(content[:length])
        with pytest.raises(FileError):
            load_image(tmp_path / "part.png")


def test_arrays() -> None:
    assert load_image(np.zeros((4, 6, 3), dtype=np.uint8)).size == (6, 4)
    with pytest.raises(FileError, match="no pixels"):
        load_image(np.zeros((0, 6, 3), dtype=np.uint8))
    for bad in (np.zeros((4, 6, 3), dtype=np.float32), np.zeros((4, 6, 5), dtype=np.uint8), 7):
        with pytest.raises(VadisError):
            load_image(bad)


# ---- prompts


@pytest.mark.parametrize(
    ("size", "grid"), [((640, 480), [26, 36]), ((128, 128), [8, 8]), ((32, 32), [4, 4]), ((480, 640), [36, 26])]
)
def test_placeholders_are_as_many_as_visual_tokens(packer: ScenePacker, size: tuple[int, int], grid: list[int]) -> None:
    prompt = packer.prompt("walk to the red box", picture(*size))
    assert prompt.pixels is not None and prompt.pixels.grid.tolist() == [[1, *grid]]
    count = grid[0] * grid[1] // 4
    assert prompt.types.count(1) == prompt.ids.count(packer._facts().image_id) == prompt.pixels.tokens == count
    assert prompt.pixels.values.shape == (grid[0] * grid[1], 1536)


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 40), (64, 6000), (1, 90)])
def test_at_most_256_visual_tokens(packer: ScenePacker, size: tuple[int, int]) -> None:
    assert packer.pixels(picture(*size)).tokens <= 256


def test_patches_hold_the_picture(packer: ScenePacker) -> None:
    left = np.zeros((64, 64, 3), dtype=np.uint8)
    left[:, :32] = 255
    values = packer.pixels(left).values.view(2, 2, 4, -1)  # rows and columns of visual tokens, patches of each
    assert values[:, 0, :, :].min() > 0.8 and values[:, 1].max() < -0.8


def test_prompt_of_text_only(packer: ScenePacker) -> None:
    prompt = packer.prompt("walk")
    assert prompt.pixels is None and set(prompt.types) == {0}
    assert packer.text_tokenizer.decode(prompt.ids) == "<|im_start|>user\nwalk<|im_end|>\n<|im_start|>assistant"


def test_prompt_without_a_template() -> None:
    tokenizer = word_tokenizer()
    f = facts(tokenizer)
    prompt = ScenePacker(tokenizer, f, max_visual_tokens=4).prompt("walk", picture())
    assert prompt.ids[:2] == [f.start_id, f.image_id] and tokenizer.decode(prompt.ids[-5:]) == "walk\n"
    assert ScenePacker(tokenizer, None).prompt("walk").ids == tokenizer("walk\n")["input_ids"]


def test_words_cannot_stand_for_images(packer: ScenePacker) -> None:
    for text in ("walk <|image_pad|>", "<|vision_start|>", "walk <|im_end|>"):
        with pytest.raises(VadisError, match="special token"):
            packer.prompt(text, picture())
    for text in ("", "  \n"):
        with pytest.raises(VadisError, match="empty"):
            packer.prompt(text)


def test_models_that_see_nothing() -> None:
    with pytest.raises(ModelError, match="takes no images"):
        VisionFacts.of(SimpleNamespace(model_type="llama"))
    with pytest.raises(VadisError, match="reads text only"):
        ScenePacker(word_tokenizer(), None).prompt("walk", picture())


def test_template_of_another_family(packer: ScenePacker) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ModelError, match="0 placeholders"):
        ScenePacker(tokenizer, facts(tokenizer)).prompt("walk", picture())


def test_collate(packer: ScenePacker) -> None:
    seen, blind = packer.prompt("go", picture(64, 64)), packer.prompt("walk on")
    batch = collate([seen, blind], pad_id=0)
    assert batch["pixel_values"].shape == (16, 1536) and batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    lengths = [len(seen.ids), len(blind.ids)]
    assert batch["attention_mask"].sum(1).tolist() == lengths and batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["mm_token_type_ids"].sum(1).tolist() == [4, 0]
    right = collate([seen, blind], pad_id=0, side="right", answers=[[5, 6], [7]])
    assert right["input_ids"][1, lengths[1]].item() == 7 and right["attention_mask"][:, 0].tolist() == [1, 1]
    assert "pixel_values" not in collate([blind, Prompt([1])], pad_id=0) and torch.is_tensor(right["input_ids"])
