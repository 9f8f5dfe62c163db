//! Log lines that programs on a volume can provoke: the first few of a kind, then one a minute that says how
//! many were left out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of a kind and volume before the rest is left out.
const BURST: u32 = 5;
/// Time for which lines are left out.
const INTERVAL: Duration = Duration::from_secs(60);
/// Kinds at which those of past intervals are forgotten.
const MANY: usize = 1024;

/// What makes two lines the same kind of message: its name, and the error number in it (0 for none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind(pub(crate) &'static str, pub(crate) i32);

impl From<&'static str> for Kind {
    fn from(name: &'static str) -> Self {
        Self(name, 0)
    }
}

/// A line that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Lines of its kind that were not written since the last one that was.
    pub(crate) left_out: Option<u64>,
}

#[derive(Debug)]
struct Slot {
    since: Instant,
    written: u32,
    left_out: u64,
}

/// Lines by kind and volume.
#[derive(Debug, Default)]
struct Limit(Mutex<HashMap<(Kind, usize), Slot>>);

impl Limit {
    fn allow(&self, kind: Kind, volume: usize, now: Instant) -> Option<Allowed> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MANY {
            slots.retain(|_, slot| now.saturating_duration_since(slot.since) < INTERVAL);
        }
        let slot = slots.entry((kind, volume)).or_insert(Slot {
            since: now,
            written: 0,
            left_out: 0,
        });
        if now.saturating_duration_since(slot.since) >= INTERVAL {
            slot.since = now;
            // After an interval in which lines were left out, one line is enough for the next.
            slot.written = if slot.left_out > 0 { BURST - 1 } else { 0 };
        }
        if slot.written >= BURST {
            slot.left_out += 1;
            return None;
        }
        slot.written += 1;
        let left_out = std::mem::take(&mut slot.left_out);
        Some(Allowed {
            left_out: (left_out > 0).then_some(left_out),
        })
    }
}

/// Whether a line of this kind may be written now for this volume (by the number of its share of the budget;
/// 0 for what belongs to none).
pub(crate) fn allow(kind: impl Into<Kind>, volume: usize) -> Option<Allowed> {
    static LIMIT: LazyLock<Limit> = LazyLock::new(Limit::default);
    LIMIT.allow(kind.into(), volume, Instant::now())
}

/// What volumes are called, by the number of their share.
static NAMES: Mutex<BTreeMap<usize, Arc<str>>> = Mutex::new(BTreeMap::new());

/// What a volume is called in its lines from now on.
pub(crate) fn name_volume(volume: usize, name: &str) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.insert(volume, name.into());
}

/// The volume is gone.
pub(crate) fn forget_volume(volume: usize) {
    NAMES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&volume);
}

/// What a volume is called; `None` for what belongs to none.
pub(crate) fn name_of(volume: usize) -> Option<Arc<str>> {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.get(&volume).map(Arc::clone)
}

/// `limited!(warn, volume, "message", fields of tracing)`: a line of the log that says which volume it is of,
/// unless there were too many with this message; with `kind => "message"`, unless there were too many of this
/// kind.
macro_rules! limited {
    ($level:ident, $volume:expr, $message:literal $(, $($field:tt)*)?) => {
        $crate::log_limit::limited!($level, $volume, $message => $message $(, $($field)*)?)
    };
    ($level:ident, $volume:expr, $kind:expr => $message:literal $(, $($field:tt)*)?) => {
        if let Some(allowed) = $crate::log_limit::allow($kind, $volume) {
            tracing::$level!(
                message = $message, volume = $crate::log_limit::name_of($volume).as_deref(),
                left_out = allowed.left_out $(, $($field)*)?
            );
        }
    };
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_flood_is_a_few_lines_and_then_one_an_interval_with_the_count() {
        let (limit, start) = (Limit::default(), Instant::now());
        let mut lines = Vec::new();
        for tick in 0..1800u32 {
            let now = start + SECOND / 10 * tick;
            lines.extend(limit.allow("flood".into(), 1, now).map(|a| a.left_out));
        }
        assert_eq!(lines, [None, None, None, None, None, Some(595), Some(599)]);
    }

    #[test]
    fn kinds_errors_and_volumes_do_not_silence_each_other() {
        let (limit, now) = (Limit::default(), Instant::now());
        let full = |kind, volume| {
            (0..100)
                .filter(|_| limit.allow(kind, volume, now).is_some())
                .count()
        };
        for (kind, volume) in [
            (Kind("read", 5), 1),
            (Kind("read", 13), 1),
            (Kind("write", 5), 1),
            (Kind("read", 5), 2),
        ] {
            assert_eq!(full(kind, volume), BURST as usize, "{kind:?} {volume}");
        }
    }

    #[test]
    fn after_a_quiet_interval_there_are_a_few_lines_again() {
        let (limit, start) = (Limit::default(), Instant::now());
        assert!(limit.allow("x".into(), 1, start).is_some());
        let later = start + INTERVAL;
        for _ in 0..BURST {
            assert_eq!(
                limit.allow("x".into(), 1, later),
                Some(Allowed { left_out: None })
            );
        }
        assert_eq!(limit.allow("x".into(), 1, later), None);
    }

    #[test]
    fn kinds_of_the_past_are_forgotten() {
        let (limit, start) = (Limit::default(), Instant::now());
        for volume in 0..MANY {
            limit.allow("x".into(), volume, start);
        }
        limit.allow("x".into(), 0, start + INTERVAL);
        assert_eq!(limit.0.lock().unwrap().len(), 1);
    }
}
