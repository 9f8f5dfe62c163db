//! What the mounts and the foreign writer do, at random.

use rand::Rng;
use rand::seq::IndexedRandom;

/// One operation, whole: opened, done and closed.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// open(O_CREAT | O_TRUNC, or O_EXCL), write, close.
    Write {
        path: String,
        content: String,
        new: bool,
    },
    Append {
        path: String,
        content: String,
    },
    Cut {
        path: String,
        size: usize,
    },
    Read {
        path: String,
    },
    List {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        replace: bool,
    },
    /// A file that stays open for writing over rounds: opened (and read), written at its end, stored, closed.
    Hold {
        path: String,
    },
    Scribble {
        content: String,
    },
    Sync {
        close: bool,
    },
    /// What a `Sync` stands for once it is known what is open: `of` is what was opened or stored last, `None`
    /// when nothing was written since.
    Store {
        path: String,
        of: String,
        content: Option<String>,
    },
    /// `dated`: with a modification time of long ago in its metadata, as copies keep it.
    ForeignPut {
        path: String,
        content: String,
        dated: bool,
    },
    ForeignDelete {
        path: String,
    },
    ForeignTag {
        path: String,
        tag: String,
    },
}

impl Step {
    pub(super) fn is_foreign(&self) -> bool {
        matches!(
            self,
            Self::ForeignPut { .. } | Self::ForeignDelete { .. } | Self::ForeignTag { .. }
        )
    }

    /// What it is about.
    pub(super) fn paths(&self) -> Vec<&str> {
        match self {
            Self::Rename { from, to, .. } => vec![from, to],
            Self::Write { path, .. }
            | Self::Append { path, .. }
            | Self::Cut { path, .. }
            | Self::Read { path }
            | Self::List { path }
            | Self::Chmod { path, .. }
            | Self::Mkdir { path }
            | Self::Rmdir { path }
            | Self::Unlink { path }
            | Self::Hold { path }
            | Self::Store { path, .. }
            | Self::ForeignPut { path, .. }
            | Self::ForeignDelete { path }
            | Self::ForeignTag { path, .. } => vec![path],
            Self::Scribble { .. } | Self::Sync { .. } => Vec::new(),
        }
    }

    /// It only looks.
    pub(super) fn looks(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::List { .. }
                | Self::Hold { .. }
                | Self::Scribble { .. }
                | Self::Sync { .. }
        )
    }
}

/// Few, so that steps meet.
const FILES: [&str; 8] = ["f", "d", "d/f", "d/g", "e", "e/f", "e/g", "d/s/h"];
const DIRECTORIES: [&str; 5] = ["d", "e", "d/s", "f", "e/f"];
const MODES: [u32; 3] = [0o600, 0o644, 0o640];

/// Steps out of a random source; no content comes twice.
#[derive(Debug, Default)]
pub(super) struct Steps {
    written: u64,
}

impl Steps {
    fn content(&mut self, rng: &mut impl Rng) -> String {
        self.written += 1;
        let pad = *[0usize, 0, 3, 70].choose(rng).unwrap_or(&0);
        format!("<{}{}>", self.written, ".".repeat(pad))
    }

    pub(super) fn next(&mut self, rng: &mut impl Rng) -> Step {
        let file = |rng: &mut _| (*FILES.choose(rng).unwrap_or(&"f")).to_owned();
        let directory = |rng: &mut _| (*DIRECTORIES.choose(rng).unwrap_or(&"d")).to_owned();
        match rng.random_range(0..112) {
            100..104 => Step::Hold { path: file(rng) },
            104..108 => Step::Scribble {
                content: self.content(rng),
            },
            108..112 => Step::Sync {
                close: rng.random_bool(0.5),
            },
            0..14 => Step::Write {
                path: file(rng),
                content: self.content(rng),
                new: rng.random_bool(0.3),
            },
            14..22 => Step::Append {
                path: file(rng),
                content: self.content(rng),
            },
            22..25 => Step::Cut {
                path: file(rng),
                size: rng.random_range(0..6),
            },
            25..36 => Step::Read { path: file(rng) },
            36..42 => Step::List {
                path: if rng.random_bool(0.3) {
                    String::new()
                } else {
                    directory(rng)
                },
            },
            42..48 => Step::Chmod {
                path: if rng.random_bool(0.8) {
                    file(rng)
                } else {
                    directory(rng)
                },
                mode: *MODES.choose(rng).unwrap_or(&0o600),
            },
            48..57 => Step::Mkdir { path: directory(rng) },
            57..64 => Step::Rmdir { path: directory(rng) },
            64..72 => Step::Unlink { path: file(rng) },
            72..79 => Step::Rename {
                from: file(rng),
                to: file(rng),
                replace: rng.random_bool(0.8),
            },
            79..88 => Step::Rename {
                from: directory(rng),
                to: directory(rng),
                replace: rng.random_bool(0.8),
            },
            88..93 => Step::ForeignPut {
                path: file(rng),
                content: self.content(rng),
                dated: rng.random_bool(0.5),
            },
            93..96 => Step::ForeignDelete { path: file(rng) },
            _ => Step::ForeignTag {
                path: file(rng),
                tag: rng.random_range(0..1000u32).to_string(),
            },
        }
    }
}
