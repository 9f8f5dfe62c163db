//! What was written to a file since its last commit: a map of ranges to memory, holes, or blocks that are
//! only staged.
//!
//! Memory that is still being filled is an *open run*: it takes appends and overwrites in place, so a small
//! sequential write costs one copy and nothing else. Everything else is immutable and shared.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vsc_driver::buffer::{Buffer, Slice};

use super::dirty_log::DirtyLog;
use super::layout::Layout;
use crate::budget::Permit;

/// Runs kept open per file; more writers than this interleaved only cost smaller pieces.
const OPEN_RUNS: usize = 8;

/// What a range of the overlay holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Zeros.
    Hole,
    /// An open run; the segment is the whole of it.
    Open,
    /// Immutable memory, and the permit it is held by.
    Mem(Slice, Arc<Permit>),
    /// Only in the service, as a staged block.
    Remote,
}

/// One range of the overlay.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) len: u64,
    /// Commits whose snapshot is of this epoch or later contain it.
    pub(crate) epoch: u64,
    pub(crate) content: Content,
}

/// Memory for a new run.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) buffer: Buffer,
    pub(crate) charge: Permit,
}

#[derive(Debug)]
struct Run {
    start: u64,
    len: usize,
    cap: usize,
    buffer: Buffer,
    charge: Permit,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }
    fn limit(&self) -> u64 {
        self.start + self.cap as u64
    }
}

/// Memory that a write still needs: at least `least` bytes, rather `best`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) least: usize,
    pub(crate) best: usize,
}

#[derive(Debug)]
enum Step {
    InPlace { run: u64, at: u64, len: usize },
    New { at: u64, len: usize, best: usize },
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    map: BTreeMap<u64, Segment>,
    open: Vec<Run>,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Segments that touch `range`, clipped to it, in order. The number is the clipped start's offset in the
    /// segment.
    pub(crate) fn segments(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, u64, &Segment)> + '_ {
        let first = self
            .map
            .range(..range.start)
            .next_back()
            .filter(|(start, seg)| *start + seg.len > range.start)
            .map_or(range.start, |(start, _)| *start);
        let clip = range.clone();
        self.map
            .range(first..range.end.max(first))
            .map(move |(start, seg)| {
                let from = (*start).max(clip.start);
                let to = (start + seg.len).min(clip.end);
                (from..to, from - start, seg)
            })
            .filter(|(r, _, _)| !r.is_empty())
    }

    /// Bytes of an open run, from `at` on, at most `len`.
    pub(crate) fn open_bytes(&self, at: u64, len: usize) -> &[u8] {
        let Some(run) = self.open.iter().find(|r| r.start <= at && at < r.end()) else {
            return &[];
        };
        let from = (at - run.start) as usize;
        &run.buffer[from..run.len.min(from + len)]
    }

    /// Copies `data` in, or says what memory it needs first (nothing has changed then). `spares` must fit the
    /// needs told, in order.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        epoch: u64,
        layout: &Layout,
        spares: &mut Vec<Spare>,
        log: &dyn DirtyLog,
    ) -> Result<(), Vec<Need>> {
        let (steps, needs) = self.steps(offset, data.len(), layout);
        let fits = |(need, spare): (&Need, &Spare)| spare.buffer.len() >= need.least;
        if spares.len() < needs.len() || !needs.iter().zip(spares.iter()).all(fits) {
            return Err(needs);
        }
        self.make_room_for_runs(&steps, needs.len());
        let mut spares = spares.drain(..needs.len());
        let mut rest = data;
        for step in steps {
            match step {
                Step::InPlace { run, at, len } => {
                    let (now, later) = rest.split_at(len);
                    rest = later;
                    let arena = self.overwrite(run, at, now);
                    log.dirty(at, len as u64, arena);
                }
                Step::New { at, len, best } => {
                    let (now, later) = rest.split_at(len);
                    rest = later;
                    let Some(mut spare) = spares.next() else { break };
                    self.carve(at..at + len as u64);
                    spare.buffer[..len].copy_from_slice(now);
                    log.dirty(at, len as u64, spare.buffer.arena_offset());
                    self.open.push(Run {
                        start: at,
                        len,
                        cap: spare.buffer.len().min(best),
                        buffer: spare.buffer,
                        charge: spare.charge,
                    });
                    self.map.insert(
                        at,
                        Segment {
                            len: len as u64,
                            epoch,
                            content: Content::Open,
                        },
                    );
                }
            }
        }
        Ok(())
    }

    fn steps(&self, offset: u64, len: usize, layout: &Layout) -> (Vec<Step>, Vec<Need>) {
        let end = offset + len as u64;
        let (mut steps, mut needs) = (Vec::new(), Vec::new());
        let mut at = offset;
        while at < end {
            let next_open = self
                .open
                .iter()
                .map(|r| r.start)
                .filter(|start| *start > at)
                .min()
                .unwrap_or(u64::MAX);
            let inside = self.open.iter().find(|r| r.start <= at && at < r.end());
            let follows = || self.open.iter().find(|r| r.end() == at && at < r.limit());
            let len = match inside.or_else(follows) {
                Some(run) => {
                    let len = (end.min(run.limit()).min(next_open) - at) as usize;
                    steps.push(Step::InPlace {
                        run: run.start,
                        at,
                        len,
                    });
                    len
                }
                None => {
                    let room = (layout.block_of(at).end.min(next_open) - at).min(layout.largest_run);
                    let best = self.growth(at, end - at, layout).min(room) as usize;
                    let len = best.min((end - at) as usize);
                    steps.push(Step::New { at, len, best });
                    needs.push(Need { least: len, best });
                    len
                }
            };
            at += len as u64;
        }
        (steps, needs)
    }

    /// Sequential writers get larger and larger pieces, others just what they write.
    fn growth(&self, at: u64, len: u64, layout: &Layout) -> u64 {
        let before = self
            .map
            .range(..at)
            .next_back()
            .filter(|(start, seg)| {
                *start + seg.len == at && matches!(seg.content, Content::Open | Content::Mem(..))
            })
            .map_or(0, |(_, seg)| seg.len);
        len.max(before.saturating_mul(4)).max(layout.page)
    }

    fn make_room_for_runs(&mut self, steps: &[Step], new: usize) {
        let used = |start: u64| {
            steps
                .iter()
                .any(|s| matches!(s, Step::InPlace { run, .. } if *run == start))
        };
        while self.open.len() + new > OPEN_RUNS {
            let Some(oldest) = self.open.iter().map(|r| r.start).find(|s| !used(*s)) else {
                return;
            };
            self.seal(oldest);
        }
    }

    /// Copies into an open run, which may grow up to its limit. Returns where in the arena the bytes are.
    fn overwrite(&mut self, run: u64, at: u64, data: &[u8]) -> u64 {
        let Some(index) = self.open.iter().position(|r| r.start == run) else {
            return 0;
        };
        let old_end = self.open[index].end();
        let end = at + data.len() as u64;
        if end > old_end {
            self.carve(old_end..end);
        }
        // Carving seals only runs it touches, and `steps` keeps clear of those; the index may have moved all
        // the same.
        let Some(run) = self.open.iter_mut().find(|r| r.start == run) else {
            return 0;
        };
        let from = (at - run.start) as usize;
        run.buffer[from..from + data.len()].copy_from_slice(data);
        run.len = run.len.max(from + data.len());
        if let Some(segment) = self.map.get_mut(&run.start) {
            segment.len = run.len as u64;
        }
        run.buffer.arena_offset() + from as u64
    }

    /// Removes `range` from the overlay and puts `content` there.
    pub(crate) fn put(&mut self, range: Range<u64>, content: Content, epoch: u64) {
        if range.is_empty() {
            return;
        }
        self.carve(range.clone());
        self.map.insert(
            range.start,
            Segment {
                len: range.end - range.start,
                epoch,
                content,
            },
        );
    }

    /// Removes `range`; what sticks out on either side stays.
    pub(crate) fn carve(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let touched: Vec<u64> = self
            .open
            .iter()
            .filter(|r| r.start < range.end && range.start < r.end())
            .map(|r| r.start)
            .collect();
        touched.into_iter().for_each(|start| self.seal(start));
        let starts: Vec<u64> = self
            .segments(range.clone())
            .map(|(clip, inside, _)| clip.start - inside)
            .collect();
        for start in starts {
            let Some(segment) = self.map.remove(&start) else {
                continue;
            };
            let end = start + segment.len;
            for keep in [
                start..range.start.min(end).max(start),
                range.end.max(start).min(end)..end,
            ] {
                if keep.is_empty() {
                    continue;
                }
                let content = match &segment.content {
                    Content::Mem(slice, charge) => Content::Mem(
                        slice.slice((keep.start - start) as usize..(keep.end - start) as usize),
                        Arc::clone(charge),
                    ),
                    other => other.clone(),
                };
                self.map.insert(
                    keep.start,
                    Segment {
                        len: keep.end - keep.start,
                        epoch: segment.epoch,
                        content,
                    },
                );
            }
        }
    }

    /// Ends an open run: its memory becomes immutable.
    fn seal(&mut self, start: u64) {
        let Some(index) = self.open.iter().position(|r| r.start == start) else {
            return;
        };
        let Run {
            len,
            mut buffer,
            charge,
            ..
        } = self.open.remove(index);
        buffer.set_len(len);
        if let Some(segment) = self.map.get_mut(&start) {
            segment.content = Content::Mem(buffer.freeze(), Arc::new(charge));
        }
    }

    /// Ends all open runs that touch `range`.
    pub(crate) fn seal_within(&mut self, range: Range<u64>) {
        let touched: Vec<u64> = self
            .open
            .iter()
            .filter(|r| r.start < range.end && range.start < r.end())
            .map(|r| r.start)
            .collect();
        touched.into_iter().for_each(|start| self.seal(start));
    }

    /// Ranges of dirty memory in `range`, adjacent ones joined.
    pub(crate) fn memory(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = Vec::new();
        for (clip, _, segment) in self.segments(range) {
            if !matches!(segment.content, Content::Open | Content::Mem(..)) {
                continue;
            }
            match all.last_mut() {
                Some(last) if last.end == clip.start => last.end = clip.end,
                _ => all.push(clip),
            }
        }
        all
    }

    /// The immutable memory of `range`, which must be covered by it; `None` when it is not.
    pub(crate) fn slices(&self, range: Range<u64>) -> Option<Vec<Slice>> {
        let mut at = range.start;
        let mut slices = Vec::new();
        for (clip, inside, segment) in self.segments(range.clone()) {
            let Content::Mem(slice, _) = &segment.content else {
                return None;
            };
            if clip.start != at {
                return None;
            }
            let from = inside as usize;
            slices.push(slice.slice(from..from + (clip.end - clip.start) as usize));
            at = clip.end;
        }
        (at == range.end).then_some(slices)
    }

    /// Takes out everything that a commit of `epoch` contains.
    pub(crate) fn take_committed(&mut self, epoch: u64) -> Vec<(u64, Segment)> {
        let (taken, kept) = std::mem::take(&mut self.map)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, seg)| seg.epoch <= epoch);
        self.map = kept.into_iter().collect();
        taken
    }

    /// A copy of everything, all of it immutable from now on.
    pub(crate) fn snapshot(&mut self) -> Vec<(u64, Segment)> {
        self.seal_within(0..u64::MAX);
        self.map
            .iter()
            .map(|(start, seg)| (*start, seg.clone()))
            .collect()
    }
}
