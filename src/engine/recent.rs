//! The last few values by key.

use crate::error::Result;

/// At most so many values; what was unused for longest makes room for a new one.
pub(super) struct Recent<K, V> {
    /// Most recently used last.
    entries: Vec<(K, V)>,
    most: usize,
}

impl<K: PartialEq, V> Recent<K, V> {
    /// Room for `most` values, at least one.
    pub(super) fn new(most: usize) -> Self {
        Recent { entries: Vec::new(), most: most.max(1) }
    }

    /// The value of `key`, made by `make` if there is none. It becomes the most recent.
    pub(super) fn get(&mut self, key: K, make: impl FnOnce() -> Result<V>) -> Result<&mut V> {
        if let Some(found) = self.entries.iter().position(|(known, _)| *known == key) {
            self.entries[found..].rotate_left(1);
        } else {
            // Made before another goes: if it cannot be made, nothing is lost.
            let value = make()?;
            if self.entries.len() == self.most {
                self.entries.remove(0);
            }
            self.entries.push((key, value));
        }
        let last = self.entries.len() - 1;
        Ok(&mut self.entries[last].1)
    }

    /// Whether there is a value of `key`.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn has(&self, key: &K) -> bool {
        self.entries.iter().any(|(known, _)| known == key)
    }

    /// The value that was asked for last.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn latest(&mut self) -> Option<&mut V> {
        self.entries.last_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_was_unused_for_longest_goes() {
        let mut recent = Recent::new(2);
        let mut made = Vec::new();
        for key in [1, 2, 1, 3, 1, 2] {
            let value = recent.get(key, || {
                made.push(key);
                Ok(10 * key)
            });
            assert_eq!(*value.unwrap(), 10 * key);
        }
        assert_eq!(made, [1, 2, 3, 2], "3 took the place of 2, and 2 then that of 3");
        assert_eq!(recent.latest(), Some(&mut 20));
        assert!(recent.has(&1) && recent.has(&2) && !recent.has(&3));
        assert!(recent.get(5, || Err(Error::usage("no"))).is_err());
        assert_eq!(*recent.get(1, || Ok(0)).unwrap(), 10, "a failure evicts nothing");
    }
}
