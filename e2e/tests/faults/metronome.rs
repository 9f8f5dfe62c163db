//! How late threads go on on this machine: a measure of its load that has no part in what is tested.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(10);

/// A thread that wants to go on at each beat.
#[derive(Debug)]
pub(crate) struct Metronome {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Metronome {
    pub(crate) fn start() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            let mut latest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(BEAT);
                latest = latest.max(began.elapsed().saturating_sub(BEAT));
            }
            latest
        });
        Self { ends, thread }
    }

    /// How late it was at worst.
    pub(crate) fn stop(self) -> Duration {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("a thread that only sleeps")
    }
}
