//! What was found odd in a data set, or left out of it.

use std::fmt;

/// One kind of harmless oddity, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What was found and what was done about it.
    pub what: String,
    /// How often.
    pub count: usize,
    /// The first record it was found in; empty if it is of the set as a whole.
    pub first: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first.as_str() {
            "" => f.write_str(&self.what),
            first => write!(f, "{} ({} times; first: {first})", self.what, self.count),
        }
    }
}

/// The oddities of a data set.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(pub Vec<Warning>);

impl Warnings {
    /// One more of a kind, found in `record`.
    pub fn add(&mut self, what: &str, record: &str) {
        match self.0.iter_mut().find(|w| w.what == what) {
            Some(warning) => warning.count += 1,
            None => self.0.push(Warning { what: what.into(), count: 1, first: record.into() }),
        }
    }

    /// Something that is said of the whole set.
    pub fn say(&mut self, what: String) {
        self.0.push(Warning { what, count: 1, first: String::new() });
    }

    /// Says `what` of these classes, if there are any.
    pub fn classes<'a>(&mut self, what: &str, names: impl Iterator<Item = &'a str>) {
        let names: Vec<&str> = names.collect();
        if !names.is_empty() {
            self.say(format!("{what}: {}", list(&names)));
        }
    }
}

/// The first names of a list, and how many follow.
pub(in crate::train) fn list(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 12;
    let first: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => first.join(", "),
        more => format!("{}, and {more} more", first.join(", ")),
    }
}
