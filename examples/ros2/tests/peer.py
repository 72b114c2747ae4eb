"""A publisher and subscriber on Cyclone DDS, which knows nothing of the node: it does what lines on standard input
tell it, and says on standard output what arrives, one JSON object a line. Pixels go through files.

    {"do": "publish", "topic": T, "image": {...}, "file": PATH}
    {"do": "subscribe", "topic": T, "type": "image" | "label_info", "latched": BOOL}
    {"do": "quit"}
"""

import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass

from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float32, int32, sequence, uint8, uint16, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration


# As the .msg files of ROS have them; the names are those of rmw's type support.
@dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class VisionClass(IdlStruct, typename="vision_msgs.msg.dds_.VisionClass_"):
    class_id: uint16
    class_name: str


@dataclass
class LabelInfo(IdlStruct, typename="vision_msgs.msg.dds_.LabelInfo_"):
    header: Header
    class_map: sequence[VisionClass]
    threshold: float32


def quality(latched):
    durability = Policy.Durability.TransientLocal if latched else Policy.Durability.Volatile
    return Qos(Policy.Reliability.Reliable(duration(seconds=1)), durability, Policy.History.KeepLast(8))


class Peer:
    def __init__(self, domain):
        self.participant = DomainParticipant(domain)
        self.folder = tempfile.mkdtemp(dir=os.environ.get("PEER_FOLDER"))
        self.lock = threading.Lock()
        self.writers = {}
        self.files = 0

    def topic(self, name, type_):
        return Topic(self.participant, "rt" + name, type_)

    def say(self, line):
        with self.lock:
            print(json.dumps(line), flush=True)

    def publish(self, topic, image, file):
        if topic not in self.writers:
            self.writers[topic] = DataWriter(self.participant, self.topic(topic, Image), qos=quality(False))
        header = image.pop("header")
        header = Header(Time(**header["stamp"]), header["frame_id"])
        with open(file, "rb") as pixels:
            self.writers[topic].write(Image(header=header, data=pixels.read(), **image))

    def subscribe(self, topic, type_, latched):
        types = {"image": (Image, self.said_of_image), "label_info": (LabelInfo, self.said_of_labels)}
        idl, said = types[type_]
        reader = DataReader(self.participant, self.topic(topic, idl), qos=quality(latched))

        def follow():
            while True:
                for sample in reader.take_iter(timeout=duration(seconds=1)):
                    self.say({"topic": topic, **said(sample)})

        threading.Thread(target=follow, daemon=True).start()

    @staticmethod
    def said_of_header(header):
        return {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec, "frame_id": header.frame_id}

    def said_of_image(self, image):
        with self.lock:
            self.files += 1
            path = os.path.join(self.folder, str(self.files))
        with open(path, "wb") as file:
            file.write(bytes(image.data))
        fields = {name: getattr(image, name) for name in ("height", "width", "encoding", "is_bigendian", "step")}
        return {**self.said_of_header(image.header), **fields, "file": path}

    def said_of_labels(self, info):
        classes = [[c.class_id, c.class_name] for c in info.class_map]
        return {**self.said_of_header(info.header), "class_map": classes, "threshold": info.threshold}


def main():
    peer = Peer(int(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "publish":
                peer.publish(command["topic"], command["image"], command["file"])
            case "subscribe":
                peer.subscribe(command["topic"], command["type"], command["latched"])
            case "quit":
                break
    sys.stdout.flush()
    # Readers' threads wait for samples that will not come.
    os._exit(0)


main()
