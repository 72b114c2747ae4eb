#!/usr/bin/env python3
"""Serves models with NVIDIA's tritonserver and compares what its clients get with the library's own results.

    serve.py --triton FOLDER --backends FOLDER --library LIBKNET --weights FILE --photo FILE --size HxW [--fault LIBRARY]

FOLDER is what tools/setup-triton installs; the photo's file has three bytes a pixel. The test
`a_server_gives_what_the_library_gives` of src/capi builds all of it and calls this.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for option in ("triton", "backends", "library", "weights", "photo"):
    parser.add_argument(f"--{option}", required=True, type=pathlib.Path)
parser.add_argument("--size", required=True, help="rows and columns of the photo")
parser.add_argument("--fault", type=pathlib.Path, help="a library that makes knet_segment fail, to load before")
arguments = parser.parse_args()
sys.path.insert(0, str(arguments.triton / "client"))

import numpy  # noqa: E402
import tritonclient.grpc  # noqa: E402
import tritonclient.http  # noqa: E402
from tritonclient.utils import InferenceServerException, shared_memory  # noqa: E402

FAULT_WIDTH = 77
"""Images of this width fail in the library that --fault names."""
OUTPUTS = ["COUNT", "LABELS", "NAMES", "SCORES", "BOXES", "MASKS", "RLES", "OBJECT_MAP", "CLASS_MAP"]
OF_MAPS = ["COUNT", "LABELS", "NAMES", "SCORES", "OBJECT_MAP", "CLASS_MAP"]


# The library itself, by its C interface.

u8, u32, u64, size, text, pointer = (ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t,
                                     ctypes.c_char_p, ctypes.c_void_p)


class Sized(ctypes.Structure):
    """A struct of knet.h: it begins with its size."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


def struct(type_name, /, **fields):
    return type(type_name, (Sized,), {"_fields_": [("struct_size", u32), *fields.items()]})


class Plane(ctypes.Structure):
    _fields_ = [("data", pointer), ("stride", size)]


ModelOptions = struct("ModelOptions", precision=u32, weights=text, weights_data=pointer, weights_size=size,
                      name=text, device=text, exact=u32, reserved=u32)
SessionOptions = struct("SessionOptions", task=u32, threads=u32, short_side=u32, long_side=u32, as_they_are=u32,
                        min_score=ctypes.c_float, confidence=u32, on_caller=u32, cpu_count=u32, cpus=pointer,
                        deadline_ns=u64, stages=u32, reserved=u32)
Frame = struct("Frame", format=u32, height=u32, width=u32, planes=Plane * 3, timestamp_ns=u64, memory=u32,
               reserved=u32)
Info = struct("Info", task=u32, height=u32, width=u32, objects=u32, stages=u32, timestamp_ns=u64)
Object = struct("Object", label=u32, score=ctypes.c_float, is_thing=u32, area=u64, x=u32, y=u32, width=u32,
                height=u32)
Class = struct("Class", id=u32, name=text, is_thing=u32, colour=u8 * 4)


class Library:
    def __init__(self, path):
        self.functions = ctypes.CDLL(str(path))
        self.functions.knet_last_error.restype = text
        self.functions.knet_result_new.restype = pointer

    def call(self, name, *values):
        status = getattr(self.functions, name)(*values)
        if status != 0:
            raise RuntimeError(f"{name}: {self.functions.knet_last_error().decode()}")


class Session:
    """A model and a session of it, with the options that a configuration names."""

    def __init__(self, library, weights, name=None, exact=0, **options):
        self.library, self.model, self.session = library, pointer(), pointer()
        model = ModelOptions(weights=str(weights).encode(), name=name and name.encode(), device=b"cpu", exact=exact)
        library.call("knet_model_open", ctypes.byref(model), ctypes.byref(self.model))
        options = SessionOptions(**options)
        library.call("knet_session_open", self.model, ctypes.byref(options), ctypes.byref(self.session))
        self.result = pointer(library.functions.knet_result_new())

    def segment(self, image):
        """The tensors that the server should give."""
        image = numpy.ascontiguousarray(image)
        height, width = image.shape[:2]
        frame = Frame(height=height, width=width)
        frame.planes[0] = Plane(image.ctypes.data, 0)
        self.library.call("knet_segment", self.session, ctypes.byref(frame), self.result)
        info = Info()
        self.library.call("knet_result_get_info", self.result, ctypes.byref(info))
        objects = [self.object(i) for i in range(info.objects)]
        found = {
            "COUNT": numpy.array([len(objects)], numpy.int32),
            "LABELS": numpy.array([o.label for o in objects], numpy.int32),
            "NAMES": numpy.array([self.name(o.label) for o in objects], object),
            "SCORES": numpy.array([o.score for o in objects], numpy.float32),
            "OBJECT_MAP": self.map(1, 0, numpy.zeros((height, width), numpy.uint16)),
            "CLASS_MAP": self.map(2, 255, numpy.zeros((height, width), numpy.uint8)),
        }
        if info.task == 1:
            boxes = [[o.x, o.y, o.x + o.width, o.y + o.height] for o in objects]
            found["BOXES"] = numpy.array(boxes, numpy.float32).reshape(-1, 4)
            found["MASKS"] = numpy.zeros((len(objects), height, width), numpy.uint8)
            for i, mask in enumerate(found["MASKS"]):
                self.library.call("knet_result_mask_u8", self.result, i, u8(1), pointer(mask.ctypes.data),
                                  size(width))
            found["RLES"] = numpy.array([self.rle(i) for i in range(len(objects))], object)
        return found

    def object(self, index):
        found = Object()
        self.library.call("knet_result_get_object", self.result, index, ctypes.byref(found))
        return found

    def name(self, label):
        found = Class()
        self.library.call("knet_model_class", self.model, label, ctypes.byref(found))
        return found.name

    def rle(self, index):
        needed = size()
        self.library.call("knet_result_mask_rle", self.result, index, None, size(0), ctypes.byref(needed))
        buffer = ctypes.create_string_buffer(needed.value)
        self.library.call("knet_result_mask_rle", self.result, index, buffer, needed, ctypes.byref(needed))
        return buffer.value

    def map(self, kind, none, pixels):
        self.library.call("knet_result_map", self.result, kind, none, pixels.itemsize, pointer(pixels.ctypes.data),
                          size(pixels.strides[0]))
        return pixels


# The server.

def free_ports(count):
    """Ports that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Server:
    def __init__(self, folder, models):
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.log = folder / "log"
        command = [arguments.triton / "server/pytriton/tritonserver/bin/tritonserver",
                   "--model-repository", folder / "models", "--backend-directory", arguments.backends,
                   "--model-control-mode", "explicit", "--allow-metrics", "false",
                   "--http-address", "127.0.0.1", "--http-port", self.http.split(":")[1],
                   "--grpc-address", "127.0.0.1", "--grpc-port", self.grpc.split(":")[1]]
        for model in models:
            command += ["--load-model", model]
        environment = dict(os.environ)
        if arguments.fault:
            environment["LD_PRELOAD"] = str(arguments.fault)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def text(self):
        return self.log.read_text(errors="replace")

    def wait_until_ready(self):
        for _ in range(600):
            assert self.process.poll() is None, f"the server has ended\n{self.text()}"
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5).status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready after 30 seconds\n{self.text()}")

    def end(self):
        """Asks the server to end, which it must do by itself and without a complaint."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        assert code == 0, f"exit code {code}\n{self.text()}"
        assert "Found 0 live models" in self.text(), self.text()

    @contextlib.contextmanager
    def client(self, protocol):
        """A connection. The server waits half a minute for those that are left open."""
        module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
        with module.InferenceServerClient(getattr(self, protocol)) as client:
            yield module, client


def infer(connection, model, image, outputs=None, datatype="UINT8", **options):
    """The tensors that a model answers with, by name."""
    module, client = connection
    tensor = module.InferInput("IMAGE", list(image.shape), datatype)
    tensor.set_data_from_numpy(image)
    wanted = [module.InferRequestedOutput(name) for name in outputs or []] or None
    answer = client.infer(model, [tensor], outputs=wanted, **options)
    given = answer.get_response()
    names = [o["name"] for o in given["outputs"]] if isinstance(given, dict) else [o.name for o in given.outputs]
    return {name: answer.as_numpy(name) for name in names}


def assert_same(found, expected, names):
    assert sorted(found) == sorted(names), f"{sorted(found)}, not {sorted(names)}"
    for name in names:
        one, other = found[name], expected[name]
        # A client makes None of a tensor without elements.
        if one is None and other.size == 0:
            continue
        assert one.dtype == other.dtype, f"{name}: {one.dtype}, not {other.dtype}"
        assert one.shape == other.shape, f"{name}: {one.shape}, not {other.shape}"
        assert numpy.array_equal(one, other), f"{name} differs"


def refused(what, *words):
    """The words with which a request is refused."""
    try:
        what()
    except InferenceServerException as error:
        assert all(word in str(error) for word in words), f"{error}: no {words}"
        return
    raise AssertionError(f"nothing was refused: {words}")


# The repository.

PERSON = dict(short_side=96, long_side=128, min_score=0.05)
PERSON_PARAMETERS = {"size": "96x128", "min_score": "0.05"}


def model(folder, name, config="", file=None, /, **parameters):
    version = folder / "models" / name / "1"
    version.mkdir(parents=True)
    if file:
        shutil.copy(file, version / "model.safetensors")
    lines = ['backend: "knet"', config]
    lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
              for key, value in parameters.items()]
    (version.parent / "config.pbtxt").write_text("\n".join(lines) + "\n")


def repository(folder):
    weights = arguments.weights
    model(folder, "person", "instance_group [{ kind: KIND_CPU count: 2 }]", weights, **PERSON_PARAMETERS)
    model(folder, "batch", "max_batch_size: 4\ndynamic_batching {}", weights, **PERSON_PARAMETERS, threads="1")
    model(folder, "panoptic", **PANOPTIC, size="64x96")
    model(folder, "two_lines", "", weights)
    model(folder, "strict", 'input [{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }]\n'
          'output [{ name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] },'
          ' { name: "RLES" data_type: TYPE_STRING dims: [ -1 ] }]\n'
          'model_warmup [{ name: "camera" batch_size: 1 inputs { key: "IMAGE" value {'
          ' data_type: TYPE_UINT8 dims: [ 90, 120, 3 ] zero_data: true } } }]',
          weights, **PERSON_PARAMETERS, format="bgr", stages="1", exact="true", precision="f32", threads="2",
          task="instance")
    for name, broken in BROKEN.items():
        config, parameters, _ = broken
        model(folder, name, config, weights, **parameters)
    (folder / "models/damaged/1/model.safetensors").write_bytes(b"no weights")
    (folder / "models/missing/1/model.safetensors").unlink()


PANOPTIC = dict(weights="seeded:3", name="knet_s3_r50_fpn_panoptic")
BROKEN = {
    "typo": ("", {"min_scores": "0.5"}, ["unknown parameter min_scores", "min_score"]),
    "number": ("", {"min_score": "2"}, ['min_score is "2"', "from 0 to 1"]),
    "tensor": ('output [{ name: "LABELS" data_type: TYPE_INT64 dims: [ -1 ] }]', {}, ["LABELS", "TYPE_INT32"]),
    "output": ('output [{ name: "LABEL" data_type: TYPE_INT32 dims: [ -1 ] }]', {}, ["no output LABEL", "LABELS"]),
    "stages": ("", {"stages": "9"}, ["stages"]),
    "damaged": ("", {}, ["model.safetensors"]),
    "missing": ("", {}, ["model.safetensors"]),
}


# The checks.

def images_of(photo):
    """Images of several sizes, some of which have objects."""
    return [photo, photo[::2, ::2], photo[:, ::-1], photo[40:260, 120:380], photo[30:80, 100:300]]


def check_four_clients(server, images, expected):
    """200 requests, by two clients over HTTP and two over gRPC, at the same time."""
    failures = []

    def work(number):
        try:
            with server.client("http" if number % 2 else "grpc") as connection:
                for i in range(50):
                    at = (i + number) % len(images)
                    names = OUTPUTS if i % 2 else ["RLES", "SCORES"]
                    assert_same(infer(connection, "person", images[at], names), expected[at], names)
        except Exception as error:  # noqa: BLE001
            failures.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def check_bad_images(server, images, expected):
    bad_images = [
        (images[0].astype(numpy.float32), "FP32", ["IMAGE", "UINT8"]),
        (images[0][..., :2], "UINT8", ["IMAGE"]),
        (images[0][0], "UINT8", ["IMAGE"]),
        (numpy.zeros((0, 9, 3), numpy.uint8), "UINT8", ["IMAGE", "[0, 9, 3]"]),
    ]
    for protocol in ("http", "grpc"):
        with server.client(protocol) as connection:
            for image, datatype, words in bad_images:
                bad = numpy.ascontiguousarray(image)
                refused(lambda: infer(connection, "person", bad, datatype=datatype), *words)
            refused(lambda: infer(connection, "person", images[0], ["LABEL"]), "LABEL")
            assert_same(infer(connection, "person", images[0], OUTPUTS), expected[0], OUTPUTS)


def check_batches(server, images, expected):
    """Images of one size, padded to the one with the most objects."""
    numbers = [0, 2]
    batch = numpy.stack([images[i] for i in numbers])
    most = max(len(expected[i]["LABELS"]) for i in numbers)
    padded = {}
    for name in OUTPUTS:
        padding = {"LABELS": -1, "NAMES": b"", "RLES": b""}.get(name, 0)
        rows = []
        for i in numbers:
            tensor = expected[i][name]
            if name not in ("COUNT", "OBJECT_MAP", "CLASS_MAP"):
                more = [(0, most - len(tensor))] + [(0, 0)] * (tensor.ndim - 1)
                tensor = numpy.pad(tensor, more, constant_values=padding)
            rows.append(tensor)
        padded[name] = numpy.stack(rows)
    for protocol in ("http", "grpc"):
        with server.client(protocol) as connection:
            assert_same(infer(connection, "batch", batch, OUTPUTS), padded, OUTPUTS)
            refused(lambda: infer(connection, "batch", numpy.stack([images[0]] * 5)), "batch")


def check_shared_memory(connection, image, expected):
    """An image and a map that travel through memory."""
    module, client = connection
    height, width = image.shape[:2]
    regions = {}
    try:
        for name, wanted in [("image", image.nbytes), ("map", 2 * height * width)]:
            regions[name] = shared_memory.create_shared_memory_region(name, f"/knet_{os.getpid()}_{name}", wanted)
            client.register_system_shared_memory(name, f"/knet_{os.getpid()}_{name}", wanted)
        shared_memory.set_shared_memory_region(regions["image"], [image])
        tensor = module.InferInput("IMAGE", list(image.shape), "UINT8")
        tensor.set_shared_memory("image", image.nbytes)
        output = module.InferRequestedOutput("OBJECT_MAP")
        output.set_shared_memory("map", 2 * height * width)
        client.infer("person", [tensor], outputs=[output])
        found = shared_memory.get_contents_as_numpy(regions["map"], numpy.uint16, [height, width])
        assert numpy.array_equal(found, expected["OBJECT_MAP"])
    finally:
        client.unregister_system_shared_memory()
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def check_models(connection, library, image, expected):
    """Other configurations, and another kind of model."""
    whole = Session(library, arguments.weights).segment(image)
    assert_same(infer(connection, "two_lines", image), whole, OUTPUTS)
    strict = Session(library, arguments.weights, exact=1, stages=1, **PERSON).segment(image)
    assert list(strict["RLES"]) != list(expected["RLES"]), "the options make no difference"
    assert_same(infer(connection, "strict", image[..., ::-1].copy()), strict, ["COUNT", "RLES"])
    panoptic = Session(library, **PANOPTIC, short_side=64, long_side=96).segment(image)
    assert len(panoptic["LABELS"]) > 0
    assert_same(infer(connection, "panoptic", image), panoptic, OF_MAPS)


def check_fault(connection, photo, expected):
    """A fault inside the library costs one request."""
    bad = numpy.ascontiguousarray(photo[:50, :FAULT_WIDTH])
    for _ in range(2):
        refused(lambda: infer(connection, "batch", bad[None]), "a made fault")
        for _ in range(2):
            found = infer(connection, "batch", photo[None], ["RLES"])["RLES"]
            assert list(found[0]) == list(expected["RLES"])


def check_statistics(connection):
    _, client = connection
    counted = client.get_inference_statistics("person")["model_stats"][0]
    done = counted["inference_stats"]
    assert done["success"]["count"] >= 200, done
    assert done["fail"]["count"] >= 2, done
    assert done["compute_infer"]["ns"] > done["compute_output"]["ns"] > 0, done
    assert counted["execution_count"] == counted["inference_count"], counted


def check_life(server, connection, images, expected):
    """Models come and go; those that cannot come say why."""
    _, client = connection
    for name, (_, _, words) in BROKEN.items():
        refused(lambda: client.load_model(name), *words)
    loaded = "person: loaded"
    assert server.text().count(loaded) == 1, "two instances share their weights"
    client.unload_model("person")
    refused(lambda: infer(connection, "person", images[0]), "person")
    for _ in range(600):
        if "successfully unloaded 'person'" in server.text():
            break
        time.sleep(0.05)
    client.load_model("person")
    assert_same(infer(connection, "person", images[0], OUTPUTS), expected[0], OUTPUTS)
    assert server.text().count(loaded) == 2, server.text()


def main():
    height, width = map(int, arguments.size.split("x"))
    photo = numpy.fromfile(arguments.photo, numpy.uint8).reshape(height, width, 3)
    images = [numpy.ascontiguousarray(image) for image in images_of(photo)]
    library = Library(arguments.library)
    person = Session(library, arguments.weights, **PERSON)
    expected = [person.segment(image) for image in images]
    objects = [len(found["LABELS"]) for found in expected]
    assert max(objects) > 1 and len(set(objects)) > 1, f"images with different numbers of objects: {objects}"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        repository(folder)
        server = Server(folder, ["person", "batch", "panoptic", "two_lines", "strict"])
        try:
            server.wait_until_ready()
            check_four_clients(server, images, expected)
            check_bad_images(server, images, expected)
            check_batches(server, images, expected)
            with server.client("grpc") as connection:
                check_shared_memory(connection, images[0], expected[0])
                check_models(connection, library, images[1], expected[1])
            with server.client("http") as connection:
                if arguments.fault:
                    check_fault(connection, images[0], expected[0])
                check_statistics(connection)
                check_life(server, connection, images, expected)
            server.end()
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
            if sys.exc_info()[0]:
                print(server.text())
    print("ok")


main()
