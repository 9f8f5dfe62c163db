//! Which reads of a handle follow each other, and how far ahead of them to fetch.
//!
//! A handle has a few cursors, so that interleaved scans stay sequential. A cursor becomes a stream when what
//! was asked for is dense: read-ahead of the kernel may arrive out of order, random reads are never dense.
//! The window of a stream is what its reader consumes in twice the time an answer takes, found by growing
//! while the reader has to wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tuning::Tuning;
use crate::budget::Budget;

/// Scans that one handle can interleave.
const CURSORS: usize = 4;

/// A read this far ahead of a stream still belongs to it.
const FORWARD: u64 = 16 << 20;

/// A read that ends this far behind a stream's front still belongs to it: read-ahead of the kernel comes in
/// any order.
const BACKWARD: u64 = 4 << 20;

/// A stream that was not read for so long starts with a small window again.
const IDLE: Duration = Duration::from_secs(5);

/// How quickly the service answers, over all handles of a file.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Nanoseconds per answer, the quickest of the recent ones.
    nanos: AtomicU64,
}

impl Pace {
    /// An answer of `len` bytes took so long.
    pub(crate) fn arrived(&self, len: u64, took: Duration) {
        if len < 64 << 10 {
            return;
        }
        let took = took.as_nanos() as u64;
        let old = self.nanos.load(Ordering::Relaxed);
        // The quickest, but forgetting it slowly: the way to the service may have become longer.
        let new = if old == 0 {
            took
        } else {
            took.min(old + old / 16 + 1)
        };
        self.nanos.store(new, Ordering::Relaxed);
    }

    fn latency(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// What to do about a read besides answering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing: it is random, or enough is on its way.
    Nothing,
    /// Have `from..to` fetched, in parts of `part` bytes aligned to themselves.
    Ahead {
        /// Where nothing was asked for yet.
        from: u64,
        /// End of the window.
        to: u64,
        /// Bytes of a part.
        part: u64,
    },
}

#[derive(Debug)]
struct Cursor {
    /// Where it began.
    start: u64,
    /// Highest end of a read.
    front: u64,
    /// Bytes asked for since `start`.
    asked: u64,
    reads: u64,
    stream: Option<Stream>,
    last: Instant,
}

#[derive(Debug)]
struct Stream {
    window: u64,
    /// Everything below was asked of the service.
    issued: u64,
    /// Start of the current measurement: front and time then, and whether a read had to wait since.
    measured: (u64, Instant),
    waited: bool,
    /// Bytes asked for since the front was where.
    density: (u64, u64),
    /// See [`Budget::stream_share`].
    counted: u64,
}

/// Cursors of one handle.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    cursors: Vec<Cursor>,
}

impl Streams {
    /// A read of `offset..end` came; `waited` when it was not in memory.
    pub(crate) fn note(
        &mut self,
        offset: u64,
        end: u64,
        waited: bool,
        pace: &Pace,
        budget: &Arc<Budget>,
        tuning: &Tuning,
    ) -> Advice {
        let now = Instant::now();
        let Some(index) = self.find(offset, end) else {
            self.begin(offset, end, now);
            // A large first read at the start of a file announces a scan; anything else has to prove itself.
            if offset > 0 || end - offset < tuning.round {
                return Advice::Nothing;
            }
            return self.advise(self.cursors.len() - 1, waited, now, pace, budget, tuning);
        };
        let cursor = &mut self.cursors[index];
        if now - cursor.last > IDLE {
            cursor.stream = None;
        }
        if let Some(stream) = &mut cursor.stream {
            let (from, asked) = &mut stream.density;
            *asked += end - offset;
            let advanced = end.saturating_sub(*from);
            if advanced > tuning.part_max {
                // It jumps ahead more than it reads: what is fetched in between is for nothing.
                if *asked * 4 < advanced {
                    self.cursors.remove(index);
                    self.begin(offset, end, now);
                    return Advice::Nothing;
                }
                stream.density = (end, 0);
            }
        }
        cursor.last = now;
        cursor.asked += end - offset;
        cursor.reads += 1;
        cursor.start = cursor.start.min(offset);
        cursor.front = cursor.front.max(end);
        let dense = cursor.asked * 2 >= cursor.front - cursor.start;
        if cursor.stream.is_none() && !(dense && cursor.reads >= 3) {
            if !dense {
                // Near by chance: begin anew.
                self.cursors.remove(index);
                self.begin(offset, end, now);
            }
            return Advice::Nothing;
        }
        self.advise(index, waited, now, pace, budget, tuning)
    }

    /// Everything below `to` is on its way now, for the stream that a read at `offset` belongs to.
    pub(crate) fn issued(&mut self, offset: u64, to: u64) {
        let cursor = self
            .cursors
            .iter_mut()
            .find(|c| c.start <= offset && offset < c.front);
        if let Some(stream) = cursor.and_then(|c| c.stream.as_mut()) {
            stream.issued = stream.issued.max(to);
        }
    }

    fn find(&self, offset: u64, end: u64) -> Option<usize> {
        let near = |c: &Cursor| {
            let (forward, backward) = match &c.stream {
                Some(_) => (FORWARD, BACKWARD),
                // What read-ahead of the kernel may have reordered.
                None => ((end - offset) * 4, (end - offset) * 4),
            };
            offset <= c.front + forward && end + backward >= c.front && offset + backward >= c.start
        };
        // The nearest front, so that scans close to each other keep their own cursors.
        (0..self.cursors.len())
            .filter(|i| near(&self.cursors[*i]))
            .min_by_key(|i| self.cursors[*i].front.abs_diff(offset))
    }

    fn begin(&mut self, offset: u64, end: u64, now: Instant) {
        if self.cursors.len() >= CURSORS {
            let oldest = (0..self.cursors.len()).min_by_key(|i| self.cursors[*i].last);
            if let Some(oldest) = oldest {
                self.cursors.remove(oldest);
            }
        }
        self.cursors.push(Cursor {
            start: offset,
            front: end,
            asked: end - offset,
            reads: 1,
            stream: None,
            last: now,
        });
    }

    fn advise(
        &mut self,
        index: usize,
        waited: bool,
        now: Instant,
        pace: &Pace,
        budget: &Arc<Budget>,
        tuning: &Tuning,
    ) -> Advice {
        let Some(cursor) = self.cursors.get_mut(index) else {
            return Advice::Nothing;
        };
        let front = cursor.front;
        let start = cursor.start;
        let stream = cursor.stream.get_or_insert_with(|| Stream {
            window: tuning.part_min,
            issued: if front - start <= tuning.part_min {
                start
            } else {
                front
            },
            measured: (front, now),
            waited: false,
            density: (front, 0),
            counted: 0,
        });
        stream.waited |= waited;
        stream.measure(front, front - start, now, pace, budget, tuning);
        if front > stream.issued {
            // The reader jumped over what was asked for.
            stream.issued = stream
                .issued
                .max(front.saturating_sub(BACKWARD.min(tuning.part_min)));
        }
        let ahead = stream.issued.saturating_sub(front);
        if ahead > stream.window / 2 {
            return Advice::Nothing;
        }
        let part = (stream.window / 4).clamp(tuning.part_min, tuning.part_max);
        // Parts are powers of two of the smallest, so that they stay aligned to it.
        let part = tuning.part_min * (part / tuning.part_min).max(1).next_power_of_two();
        Advice::Ahead {
            from: stream.issued,
            to: front + stream.window,
            part: part.min(tuning.part_max),
        }
    }
}

impl Stream {
    fn measure(
        &mut self,
        front: u64,
        consumed: u64,
        now: Instant,
        pace: &Pace,
        budget: &Arc<Budget>,
        tuning: &Tuning,
    ) {
        let (from, since) = self.measured;
        let bytes = front.saturating_sub(from);
        if bytes < (self.window / 2).min(tuning.part_max) {
            return;
        }
        let seconds = (now - since).as_secs_f64().max(1e-6);
        let target = (bytes as f64 / seconds * pace.latency().as_secs_f64() * 2.0) as u64;
        self.window = if self.waited {
            // The rate seen so far was held down by the window itself.
            target.max(self.window * 2).min(self.window * 4)
        } else {
            target.max(self.window / 2).min(self.window)
        };
        // A scan that goes on and on is worth large parts, however quickly the service answers.
        let least = consumed.clamp(tuning.part_min, tuning.part_max * 4);
        let share = budget.stream_share(&mut self.counted) as u64;
        let most = tuning.window_max.min(share);
        self.window = self.window.max(least).min(most.max(tuning.part_min));
        self.measured = (front, now);
        self.waited = false;
    }
}

/// What a reading handle remembers: its streams (sequential detection). One per open handle.
#[derive(Debug, Default)]
pub struct Reader {
    pub(crate) streams: Mutex<Streams>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    struct Handle {
        streams: Streams,
        pace: Pace,
        budget: Arc<Budget>,
        tuning: Tuning,
        /// Bytes fetched ahead.
        ahead: u64,
    }

    impl Handle {
        fn new() -> Self {
            Self {
                streams: Streams::default(),
                pace: Pace::default(),
                budget: Budget::new(512 << 20),
                tuning: Tuning::default(),
                ahead: 0,
            }
        }
        fn read(&mut self, offset: u64, len: u64, waited: bool) -> Advice {
            let end = offset + len;
            let advice = self
                .streams
                .note(offset, end, waited, &self.pace, &self.budget, &self.tuning);
            if let Advice::Ahead { from, to, part } = advice {
                let to = to.div_ceil(part) * part;
                self.ahead += to - from;
                self.streams.issued(offset, to);
            }
            advice
        }
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut handle = Handle::new();
        let mut at = 12345u64;
        for _ in 0..5000 {
            at = at
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            handle.read((at >> 20) % (100 * MIB) / 4096 * 4096, 4096, true);
        }
        assert!(handle.ahead < 20 * MIB, "{}", handle.ahead);
    }

    #[test]
    fn sequential_reads_become_a_stream_with_a_growing_window() {
        let mut handle = Handle::new();
        handle.pace.arrived(MIB, Duration::from_millis(10));
        for n in 0..2000 {
            handle.read(n * 128 * KIB, 128 * KIB, n % 3 == 0);
        }
        let stream = handle.streams.cursors[0].stream.as_ref().unwrap();
        assert!(stream.window > 16 * MIB, "{}", stream.window);
        assert!(stream.issued > 2000 * 128 * KIB);
    }

    #[test]
    fn reordered_read_ahead_is_one_stream() {
        let mut handle = Handle::new();
        for n in 0..100u64 {
            // 1 0 3 2 5 4 ...
            handle.read((n ^ 1) * MIB, MIB, true);
        }
        assert_eq!(handle.streams.cursors.len(), 1);
        assert!(handle.streams.cursors[0].stream.is_some());
    }

    #[test]
    fn interleaved_scans_are_streams_of_their_own() {
        let mut handle = Handle::new();
        for n in 0..50u64 {
            for scan in 0..4u64 {
                handle.read(scan * 1000 * MIB + n * 256 * KIB, 256 * KIB, true);
            }
        }
        assert_eq!(handle.streams.cursors.len(), 4);
        assert!(handle.streams.cursors.iter().all(|c| c.stream.is_some()));
    }

    #[test]
    fn jumping_ahead_ends_a_stream() {
        let mut handle = Handle::new();
        for n in 0..400 {
            handle.read(n * 128 * KIB, 128 * KIB, true);
        }
        assert!(handle.streams.cursors[0].stream.is_some());
        handle.ahead = 0;
        for n in 0..1000 {
            handle.read(50 * MIB + n * 2 * MIB, 4 * KIB, true);
        }
        assert!(handle.ahead < 300 * MIB, "{}", handle.ahead / MIB);
    }

    #[test]
    fn streams_share_the_budget() {
        let mut handle = Handle::new();
        handle.budget = Budget::new(32 << 20);
        handle.pace.arrived(MIB, Duration::from_secs(1));
        for n in 0..4000 {
            handle.read(n * 128 * KIB, 128 * KIB, true);
        }
        let stream = handle.streams.cursors[0].stream.as_ref().unwrap();
        assert_eq!(stream.window, 16 * MIB);
    }
}
