"""Video files and cameras of this machine as sources, by OpenCV (extra ``opencv``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_agent.source_config import CameraSource, VideoSource
from edge_agent.sources.base import Item, Surroundings
from shared.errors import ConfigError, InputError
from shared.model.preprocessing import fit_picture

log = logging.getLogger(__name__)

REOPEN_SECONDS = 2.0
"""A camera that gives no picture is opened anew after so long."""


def read_video(config: VideoSource, around: Surroundings) -> Iterator[Item]:
    """Return the pictures of a file, in the network's size.

    Raises:
        ConfigError: no such file, OpenCV cannot read it, or it is not installed.
    """
    cv2 = _opencv()
    if not Path(config.path).is_file():
        raise ConfigError(f"source: expected a video file at {config.path}")
    capture = cv2.VideoCapture(config.path)
    if not capture.isOpened():
        raise ConfigError(f"source: expected a video that OpenCV reads at {config.path}")
    return _video(capture, config, around)


def _video(capture: Any, config: VideoSource, around: Surroundings) -> Iterator[Item]:
    name, fit = Path(config.path).name, _fitter(around)
    try:
        number = 0
        while not around.stop.is_set() and capture.grab():
            if number % config.every == 0:
                read, pixels = capture.retrieve()
                item_name = f"{name}[{number}]"
                error = InputError(f"{item_name}: expected a picture, got a damaged one")
                yield Item(item_name, fit(pixels) if read else error)
            number += 1
    finally:
        capture.release()


def read_camera(config: CameraSource, around: Surroundings) -> Iterator[Item]:
    """Return the pictures of a camera until the daemon ends; it may be plugged in again.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    return _camera(_opencv(), config, around)


def _camera(cv2: Any, config: CameraSource, around: Surroundings) -> Iterator[Item]:
    fit, number = _fitter(around), 0
    while not around.stop.is_set():
        capture = _open_camera(cv2, config)
        try:
            while not around.stop.is_set() and (read := capture.read())[0]:
                yield Item(f"{config.label}[{number}]", fit(read[1]))
                number += 1
        finally:
            capture.release()
        if not around.stop.is_set():
            message = f"{config.label}: expected pictures of {config.device}, got none"
            yield Item(config.label, InputError(message))
        around.stop.wait(REOPEN_SECONDS)


def _open_camera(cv2: Any, config: CameraSource) -> Any:
    device = int(config.device) if config.device.isdecimal() else config.device
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    # What is old by the time it is asked for is of no use.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    if config.size is not None:
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.size[0])
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.size[1])
    if config.frames_per_second is not None:
        capture.set(cv2.CAP_PROP_FPS, config.frames_per_second)
    return capture


def _fitter(around: Surroundings) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8] | InputError]:
    """Return what makes network input of OpenCV's pixels, blue first, ``[H, W, 3]``."""

    def made(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | InputError:
        try:
            rgb = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
            manifest = around.manifest
            picture = Image.fromarray(rgb)
            return fit_picture(picture, manifest.spec.input_shape, manifest.preprocessing.fit)
        except InputError as error:
            return error

    return made


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "source: expected the extra 'opencv' for videos and cameras: "
            "pip install 'neucodex[opencv]'"
        ) from error
    return cv2
