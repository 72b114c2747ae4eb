//! Fields of several parts in one flat map, as files hold them: each part takes its own out of it.

use serde::de::value::Error as Probed;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

/// Fields that nobody has taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Fields(fields)
    }

    /// The field `name`, which must be there.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, String> {
        let value = self.0.remove(name).ok_or_else(|| format!("missing field `{name}`"))?;
        serde_json::from_value(value).map_err(|e| format!("{name}: {e}"))
    }

    /// The field `name`, if it is there.
    pub(super) fn find<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, String> {
        let found = self.0.remove(name).map(serde_json::from_value).transpose();
        found.map_err(|e| format!("{name}: {e}"))
    }

    /// A part with those of its fields that are there. It must have a default for each that may be absent.
    pub(super) fn part<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let mut own = Map::new();
        for name in names::<T>() {
            own.extend(self.0.remove_entry(*name));
        }
        serde_json::from_value(Value::Object(own.clone())).map_err(|error| {
            // The reader does not say which field it did not like: whichever is not liked alone, either.
            let alone = |(name, value): (&String, &Value)| {
                let field = Map::from_iter([(name.clone(), value.clone())]);
                let error = serde_json::from_value::<T>(Value::Object(field)).err()?;
                (!error.to_string().starts_with("missing field")).then(|| format!("{name}: {error}"))
            };
            own.iter().find_map(alone).unwrap_or_else(|| error.to_string())
        })
    }

    /// Refuses what nobody has taken. `known` are all fields there are.
    pub(super) fn done(self, known: &[&str]) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("unknown field `{name}`, expected one of `{}`", known.join("`, `"))),
        }
    }
}

/// Names of the fields of a struct, as its reader asks for them.
pub(super) fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The probe refuses once it has seen the names.
    let _ = T::deserialize(Probe(&mut names));
    names
}

struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Probed;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Probed> {
        Err(Probed::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Probed> {
        *self.0 = fields;
        Err(Probed::custom("the names are known"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
