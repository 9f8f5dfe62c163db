//! Fuzz targets as ordinary tests: inputs that are kept in a folder, changes of them, and values drawn at
//! random. A run draws the same each time; with `FUZZ_SECONDS` it draws others for that long. What fails is
//! made smaller, and shown.
#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "only tests use this, and a test fails by panicking"
)]

use std::time::{Duration, Instant};
use std::{env, fs};

use proptest::arbitrary::{Arbitrary, any};
use proptest::collection::vec;
use proptest::prelude::prop_oneof;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Cases of a target.
const CASES: u32 = 2000;
/// Bytes of an input that nothing else is known of, at most.
const LONGEST: usize = 600;
/// Changes of an input that is kept, at most.
const CHANGES: usize = 12;

/// Runs `test` with each value that is drawn.
///
/// # Panics
/// When it fails for one of them.
pub fn each<T: Arbitrary + 'static>(test: impl Fn(&T)) {
    draw(&any::<T>(), |value| test(value));
}

/// Runs `test` with the inputs in the folder, with changes of them - in which the words appear - and with any
/// bytes.
///
/// # Panics
/// When it fails for one of them, or there are no inputs.
pub fn bytes(folder: &str, words: &[&str], test: impl Fn(&[u8])) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an input").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} holds no inputs");
    let mut kept = Vec::new();
    for file in files {
        let input = fs::read(&file).expect("an input");
        // Shown when it fails.
        println!("{}", file.display());
        test(&input);
        kept.push(input);
    }
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let changes = vec((any::<u8>(), any::<u16>(), any::<u16>(), any::<u8>()), 1..CHANGES);
    let changed = (any::<u8>(), changes).prop_map(move |(which, changes)| {
        let mut input = kept[usize::from(which) % kept.len()].clone();
        for change in changes {
            alter(&mut input, change, &words, &kept);
        }
        input
    });
    let strategy = prop_oneof![3 => changed, 1 => vec(any::<u8>(), 0..LONGEST)];
    draw(&strategy, |input| test(input));
}

/// One change: which, where, how much, and of which other word or input.
fn alter(input: &mut Vec<u8>, change: (u8, u16, u16, u8), words: &[Vec<u8>], kept: &[Vec<u8>]) {
    let (what, at, much, which) = change;
    let at = usize::from(at) % (input.len() + 1);
    let end = input.len().min(at + usize::from(much) % 64);
    match what % 8 {
        0 => input.insert(at, which),
        1 => drop(input.drain(at..end)),
        2 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        3 => drop(input.splice(at..end, kept[usize::from(which) % kept.len()].iter().copied())),
        4 => input.truncate(at),
        5 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << (which % 8);
            }
        }
        // Beside what is there, or in its place.
        insert => {
            if let Some(word) = words.get(usize::from(which) % words.len().max(1)) {
                let end = if insert == 6 {
                    at
                } else {
                    input.len().min(at + word.len())
                };
                drop(input.splice(at..end, word.iter().copied()));
            }
        }
    }
}

fn draw<S: Strategy>(strategy: &S, test: impl Fn(&S::Value)) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let run = |mut runner: TestRunner| {
        let outcome = runner.run(strategy, |value| {
            test(&value);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    };
    let Some(seconds) = env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()) else {
        return run(TestRunner::new_with_rng(
            config,
            TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        ));
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        run(TestRunner::new(config.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn fails(test: impl FnOnce()) -> String {
        let failed = catch_unwind(AssertUnwindSafe(test)).expect_err("it fails");
        *failed.downcast::<String>().expect("a message")
    }

    #[test]
    fn what_fails_is_found_and_made_small() {
        let message = fails(|| each(|(number, _): &(u32, String)| assert!(*number < 1000)));
        assert!(message.contains("1000"), "{message}");
    }

    #[test]
    fn inputs_are_kept_changed_and_given_words() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let (kept, word) = (Cell::new(0), Cell::new(0));
        bytes(folder, &["a word of its own"], |input| {
            let holds = |text: &str| input.windows(text.len()).any(|part| part == text.as_bytes());
            kept.set(kept.get() + usize::from(holds("mod tests")));
            word.set(word.get() + usize::from(holds("a word of its own")));
        });
        assert!(kept.get() > 100 && word.get() > 100);
        let message = fails(|| bytes(folder, &[], |input| assert!(input.len() >= 7)));
        assert!(!message.is_empty());
    }

    /// A value of a strategy can be drawn alone, and the same again.
    #[test]
    fn a_run_draws_the_same_each_time() {
        let values = || {
            let values = std::cell::RefCell::new(Vec::new());
            each(|value: &u64| values.borrow_mut().push(*value));
            values.into_inner()
        };
        assert_eq!(values(), values());
    }
}
