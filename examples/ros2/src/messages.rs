//! The messages that go over the bus, field by field as the `.msg` files have them: CDR has no names, the
//! order is the format.

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `builtin_interfaces/msg/Time`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i32,
    /// Nanoseconds since then.
    pub nanosec: u32,
}

impl Time {
    /// What the system's clock says.
    pub fn now() -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { sec: since.as_secs() as i32, nanosec: since.subsec_nanos() }
    }

    /// How long ago it was; zero for a time to come.
    pub fn age(self) -> Duration {
        let since = Duration::new(self.sec.try_into().unwrap_or(0), self.nanosec);
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(since)
    }
}

/// `std_msgs/msg/Header`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// When the picture was taken.
    pub stamp: Time,
    /// The camera's coordinate frame.
    pub frame_id: String,
}

/// `sensor_msgs/msg/Image`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// When and where.
    pub header: Header,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// What the bytes mean: `rgb8`, `mono16`, ...
    pub encoding: String,
    /// Whether values of more than a byte have the highest byte first.
    pub is_bigendian: u8,
    /// Bytes from one row to the next.
    pub step: u32,
    /// The pixels, `step * height` bytes.
    pub data: Bytes,
}

/// `vision_msgs/msg/VisionClass`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionClass {
    /// The value of its pixels.
    pub class_id: u16,
    /// What it is called.
    pub class_name: String,
}

/// `vision_msgs/msg/LabelInfo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelInfo {
    /// When it was made.
    pub header: Header,
    /// What the values of a class map mean.
    pub class_map: Vec<VisionClass>,
    /// Scores of objects that were kept begin here.
    pub threshold: f32,
}

/// `uint8[]`. It is read and written as a whole: a `Vec<u8>` would be taken byte by byte.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use byteorder::LittleEndian;
    use rustdds::cdr_encoding::{from_bytes, to_vec};

    #[test]
    fn an_image_lies_as_cdr_wants_it() {
        let image = Image {
            header: Header { stamp: Time { sec: 1, nanosec: 2 }, frame_id: "cam".into() },
            height: 1,
            width: 3,
            encoding: "mono8".into(),
            is_bigendian: 0,
            step: 3,
            data: Bytes(vec![7, 8, 9]),
        };
        let wire: &[&[u8]] = &[
            &[1, 0, 0, 0, 2, 0, 0, 0],          // stamp
            &[4, 0, 0, 0, b'c', b'a', b'm', 0], // strings have their length, and a zero that counts
            &[1, 0, 0, 0, 3, 0, 0, 0],          // height, width
            &[6, 0, 0, 0],                      // encoding
            b"mono8\0",                         // ends at byte 34 ...
            &[0],                               // is_bigendian
            &[0],                               // ... so that four bytes begin here at 36
            &[3, 0, 0, 0, 3, 0, 0, 0, 7, 8, 9], // step, data
        ];
        let wire = wire.concat();
        assert_eq!(to_vec::<_, LittleEndian>(&image).unwrap(), wire);
        let (read, used) = from_bytes::<Image, LittleEndian>(&wire).unwrap();
        assert_eq!((read, used), (image, wire.len()));
        // Whatever is cut off is an error.
        for end in 0..wire.len() {
            assert!(from_bytes::<Image, LittleEndian>(&wire[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn label_info_lies_as_cdr_wants_it() {
        let class = VisionClass { class_id: 255, class_name: "UNLABELED".into() };
        let info = LabelInfo { class_map: vec![class], threshold: 0.5, ..LabelInfo::default() };
        let wire: &[&[u8]] = &[
            &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], // header, its empty frame_id padded
            &[1, 0, 0, 0, 255, 0, 0, 0],                       // one class; its number, padded
            &[10, 0, 0, 0],
            b"UNLABELED\0\0\0", // padded
            &0.5f32.to_le_bytes(),
        ];
        assert_eq!(to_vec::<_, LittleEndian>(&info).unwrap(), wire.concat());
    }
}
