//! Case-insensitive keys: which exist, where they may stand, and what a misspelled one was meant to be.

use std::collections::{BTreeMap, HashMap};

use super::table::{KEYS, Place, SYSTEM_PREFIXES};
use crate::error::{Error, Reason, Result};

/// Where a set of keys comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `volumeAttributes` of a PersistentVolume or of an inline volume.
    Attributes,
    /// `parameters` of a StorageClass.
    Class,
}

impl Scope {
    /// The field's name in a manifest.
    pub fn field(self) -> &'static str {
        match self {
            Self::Attributes => "volumeAttributes",
            Self::Class => "StorageClass parameters",
        }
    }
}

/// Below this similarity (strsim's normalized Damerau-Levenshtein) a suggestion confuses more than it helps.
const NEAR: f64 = 0.45;
/// Bytes of a letter, at most: similarity counts letters.
const LONGEST_LETTER: f64 = 4.0;

/// Checked keys: canonical spelling of ours, and the system's in lower case.
#[derive(Clone, Default)]
pub(super) struct Keys {
    known: BTreeMap<&'static str, String>,
    system: BTreeMap<String, String>,
}

impl Keys {
    /// Checks every key: known, allowed in this scope, given once.
    pub(super) fn check(map: &HashMap<String, String>, scope: Scope) -> Result<Self> {
        let mut keys = Self::default();
        // Sorted, so that the same request always names the same key first.
        let sorted: BTreeMap<_, _> = map.iter().collect();
        let mut spellings: BTreeMap<String, &str> = BTreeMap::new();
        for (key, value) in sorted {
            let lower = key.to_ascii_lowercase();
            if let Some(other) = spellings.insert(lower.clone(), key) {
                return Err(Error::new(
                    Reason::DuplicateKey,
                    format!(
                        "{}: {other:?} and {key:?} are the same key (case does not count)",
                        scope.field()
                    ),
                ));
            }
            if SYSTEM_PREFIXES.iter().any(|p| lower.starts_with(p)) {
                keys.system.insert(lower, value.clone());
                continue;
            }
            let known = allowed(scope).find(|k| k.eq_ignore_ascii_case(key));
            let known = known.ok_or_else(|| unknown(key, scope))?;
            keys.known.insert(known, value.trim().to_owned());
        }
        Ok(keys)
    }

    /// A key's value; an empty one counts as not given (templates leave such behind).
    pub(super) fn get(&self, key: &'static str) -> Option<&str> {
        self.known.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// A key's value, owned.
    pub(super) fn owned(&self, key: &'static str) -> Option<String> {
        self.get(key).map(str::to_owned)
    }

    /// A system key by its name in lower case.
    pub(super) fn system(&self, key: &str) -> Option<&str> {
        self.system.get(key).map(String::as_str)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &'static str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| match value.to_ascii_lowercase().as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(invalid(key, value, "true or false")),
            })
            .transpose()
    }

    /// One of several words, case-insensitive.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(value)) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                Err(invalid(key, value, &format!("one of {}", words.join(", "))))
            }
        }
    }
}

/// A value that is not what the key needs.
pub(super) fn invalid(key: &str, value: &str, wanted: &str) -> Error {
    Error::new(Reason::InvalidValue, format!("{key}: {value:?} is not {wanted}"))
}

fn allowed(scope: Scope) -> impl Iterator<Item = &'static str> {
    let keys = KEYS.iter();
    keys.filter(move |key| scope == Scope::Class || key.place != Place::Class)
        .map(|key| key.name)
}

fn unknown(key: &str, scope: Scope) -> Error {
    let message = if KEYS.iter().any(|known| known.name.eq_ignore_ascii_case(key)) {
        format!(
            "{}: {key:?} belongs into the parameters of a StorageClass",
            scope.field()
        )
    } else {
        match nearest(key, allowed(scope)) {
            Some(near) => format!("{}: unknown key {key:?}; did you mean {near:?}?", scope.field()),
            None => format!("{}: unknown key {key:?}", scope.field()),
        }
    };
    Error::new(Reason::UnknownKey, message)
}

/// The candidate most like a misspelled word, if any is like it.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // What differs in length alone by more than that is not like it: comparing takes time and memory for each
    // pair of letters, and whoever writes a pod writes the word.
    let alike = |c: &&str| {
        let (short, long) = (word.len().min(c.len()), word.len().max(c.len()));
        short as f64 >= NEAR * long as f64 / LONGEST_LETTER
    };
    let candidates = candidates.filter(alike);
    let word = word.to_ascii_lowercase();
    candidates
        .map(|c| {
            (
                strsim::normalized_damerau_levenshtein(&word, &c.to_ascii_lowercase()),
                c,
            )
        })
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_megabytes_is_like_none() {
        assert_eq!(
            nearest(&"storageAccount".repeat(300_000), allowed(Scope::Attributes)),
            None
        );
        let megabytes = "é".repeat(2 << 20);
        assert_eq!(
            nearest("storageAcount", [megabytes.as_str(), "prefix"].into_iter()),
            None
        );
        assert_eq!(
            nearest("storageAcount", allowed(Scope::Attributes)),
            Some("storageAccount")
        );
    }

    #[test]
    fn an_unknown_key_of_megabytes_is_told_in_short() {
        let map = HashMap::from([("x".repeat(4 << 20), String::new())]);
        let error = Keys::check(&map, Scope::Attributes).err().unwrap();
        assert!(
            error.message.starts_with("volumeAttributes: unknown key \"xxx"),
            "{error}"
        );
        assert!(error.message.len() < 2000, "{} bytes", error.message.len());
    }
}
