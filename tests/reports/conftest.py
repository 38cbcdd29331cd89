import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm

HOSTILE = "<img src=x onerror=alert(1)>&\"'=1.png"


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3, stride=2, padding=1),
    )


def calm_pictures(count, seed=0, size=(60, 48)):
    """Pictures that are alike: weak smooth noise around grey."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        noise = Image.fromarray(rng.integers(100, 156, (6, 8, 3), dtype=np.uint8))
        made.append(noise.resize(size, Image.Resampling.BICUBIC))
    return made


def with_defect(picture, box=(30, 10, 42, 20)):
    odd = picture.copy()
    odd.paste((255, 40, 0), box)
    return odd


@pytest.fixture(scope="session")
def good():
    return calm_pictures(40)


@pytest.fixture(scope="session")
def dfm(good):
    """Fitted on 40 good pictures, with maps of two layers' positions."""
    return pydfm.DFM(
        0.9, backbone=small_network(), layers=("0", "2"), image_size=32, device="cpu", alpha=0.1
    ).fit(good)


@pytest.fixture
def batch(tmp_path):
    """A folder with five good pictures and three with defects; one has a hostile name."""
    folder = tmp_path / "today"
    folder.mkdir()
    pictures = calm_pictures(8, seed=1)
    names = [f"part{i}.png" for i in range(5)] + ["cut9.png", "cut10.png", HOSTILE]
    for i, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        (picture if i < 5 else with_defect(picture)).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def driver_of(tmp_path_factory):
    """Return a headless Chromium that saves downloads in `driver.downloads`."""
    options_module = pytest.importorskip(
        "selenium.webdriver.chrome.options", reason="needs selenium (the extra browser)"
    )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    downloads = tmp_path_factory.mktemp("downloads")
    options = options_module.Options()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver_of):
    """The browser; at the end nothing was said on its console, and no dialog was opened."""
    driver_of.get_log("browser")  # drops what earlier pages said
    yield driver_of
    assert driver_of.get_log("browser") == []
