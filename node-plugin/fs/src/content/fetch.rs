//! Fetching ranges of the base: each byte at most once at a time, whoever waits for it.

use std::ops::Range;
use std::sync::Arc;

use blob_client::{BlobType, Condition, ETag, Error, Properties};
use vsc_driver::buffer::Slice;

use super::access::ReadData;
use super::assemble::Assembled;
use super::base::BaseVersion;
use super::core::{Core, size_class};
use super::error::{FileError, shutting_down};
use super::flight::{Flight, Landed};
use super::relation::{Relation, by_properties};
use super::state::State;
use super::streams::{Advice, Reader};
use crate::budget::{Kind, PROGRESS_BYTES, Permit};
use crate::sync::spawn;

/// Ends the flight even when its task is dropped.
struct Landing {
    core: Arc<Core>,
    flight: Arc<Flight>,
    done: bool,
}

impl Landing {
    fn land(mut self, landed: Landed, charge: Option<Permit>) {
        self.done = true;
        let mut state = self.core.lock();
        state.flights.retain(|f| !Arc::ptr_eq(f, &self.flight));
        if let (Landed::Here(slice), Some(charge)) = (&landed, charge)
            && state.still(self.flight.version, self.flight.range.end)
        {
            let start = self.flight.range.start;
            // The file may have been cut meanwhile.
            let valid = state.base_valid.saturating_sub(start).min(slice.len() as u64);
            let budget = &self.core.env.budget;
            let slice = slice.slice(0..valid as usize);
            state.cache.insert(start, slice, Arc::new(charge), budget);
        }
        drop(state);
        self.flight.land(landed);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.done {
            self.core.lock().flights.retain(|f| !Arc::ptr_eq(f, &self.flight));
            let landed = Landed::Failed(shutting_down());
            self.flight.land(landed);
        }
    }
}

impl Core {
    pub(crate) fn try_read(self: &Arc<Self>, reader: &Reader, offset: u64, len: usize) -> Option<ReadData> {
        let mut state = self.lock();
        let end = state.size.min(offset.saturating_add(len as u64));
        if offset >= end {
            return Some(ReadData::Owned(Vec::new()));
        }
        let Assembled::Ready(data) = state.assemble(offset, end, &[]) else {
            return None;
        };
        state.gave(end);
        self.look_ahead(&mut state, reader, offset, end, false);
        Some(data)
    }

    pub(crate) async fn read(
        self: &Arc<Self>,
        reader: &Reader,
        offset: u64,
        len: usize,
    ) -> Result<ReadData, FileError> {
        let mut noted = false;
        let mut pinned: Vec<(u64, Slice)> = Vec::new();
        let mut pinned_version = 0;
        loop {
            let flights = {
                let mut state = self.lock();
                let end = state.size.min(offset.saturating_add(len as u64));
                if offset >= end {
                    return Ok(ReadData::Owned(Vec::new()));
                }
                state.keep_pinned(&mut pinned, &mut pinned_version);
                match state.assemble(offset, end, &pinned) {
                    Assembled::Ready(data) => {
                        state.gave(end);
                        if !noted {
                            self.look_ahead(&mut state, reader, offset, end, false);
                        }
                        return Ok(data);
                    }
                    Assembled::Missing(missing) => {
                        if !std::mem::replace(&mut noted, true) {
                            self.look_ahead(&mut state, reader, offset, end, true);
                        }
                        Some(self.demand(&mut state, &missing))
                    }
                    Assembled::Remote => None,
                }
            };
            let Some(flights) = flights else {
                if self.lock().is_superseded() {
                    // Its data was given up.
                    return Err(FileError::Stale);
                }
                self.commit(None).await?;
                continue;
            };
            self.land_all(flights, &mut pinned, &mut pinned_version).await?;
        }
    }

    /// Waits for `flights`; what they bring is added to `pinned`, which is of `version`.
    async fn land_all(
        self: &Arc<Self>,
        flights: Vec<Arc<Flight>>,
        pinned: &mut Vec<(u64, Slice)>,
        version: &mut u64,
    ) -> Result<(), FileError> {
        for flight in flights {
            match flight.wait().await {
                Landed::Here(slice) => {
                    let state = self.lock();
                    if state.still(flight.version, flight.range.end) {
                        state.keep_pinned(pinned, version);
                        pinned.push((flight.range.start, slice));
                    }
                }
                Landed::Failed(error) => return Err(error),
                Landed::Changed => self.follow_reader(&flight, None).await?,
                Landed::Unproven(slice, etag) => {
                    self.follow_reader(&flight, Some(&etag)).await?;
                    let state = self.lock();
                    let now = state.base.as_ref().map(|base| &base.etag);
                    // Of the very version that is followed it is good, whatever was proven of that. (Who
                    // waits beside somebody who appends all the time would never get anything else.)
                    if now == Some(&etag) || state.still(flight.version, flight.range.end) {
                        state.keep_pinned(pinned, version);
                        pinned.push((flight.range.start, slice));
                    }
                }
            }
        }
        Ok(())
    }

    /// The service has another version than the one that `flight` was for: that is no matter if its content
    /// is the same, or begins with it. `got` is the version that the bytes of the flight are of; the
    /// service's has to be looked at after them.
    async fn follow_reader(self: &Arc<Self>, flight: &Flight, got: Option<&ETag>) -> Result<(), FileError> {
        let needed = |state: &State| {
            let base = state.base.as_ref().map(|base| &base.etag);
            state.version == flight.version && (base == flight.etag.as_ref() || got.is_some() && base != got)
        };
        if !needed(&self.lock()) {
            return Ok(());
        }
        // Perhaps it was this process: a commit or a change by the tree that is not over yet, or a commit
        // whose answer was lost.
        let turn = self.turn_to_change(&self.commits.place()).await?;
        if !needed(&self.lock()) {
            return Ok(());
        }
        let followed = self.follow().await;
        if followed.is_ok() {
            turn.got_an_answer();
        }
        self.heed(&turn, followed)
    }

    /// Bytes of the base for a commit, which keeps the version still itself.
    pub(crate) async fn read_base(self: &Arc<Self>, range: Range<u64>) -> Result<Vec<Slice>, FileError> {
        let mut pinned: Vec<(u64, Slice)> = Vec::new();
        loop {
            let flights = {
                let mut state = self.lock();
                let mut slices = Vec::new();
                let mut missing = Vec::new();
                let mut at = range.start;
                while at < range.end {
                    let here = state.cache.get(at, range.end);
                    let here = here.or_else(|| {
                        let (start, slice) = pinned
                            .iter()
                            .find(|(start, slice)| *start <= at && at < start + slice.len() as u64)?;
                        let end = (range.end - start).min(slice.len() as u64);
                        Some(slice.slice((at - start) as usize..end as usize))
                    });
                    match here {
                        Some(slice) => {
                            at += slice.len() as u64;
                            slices.push(slice);
                        }
                        None => {
                            let gap = state
                                .cache
                                .missing(at..range.end)
                                .first()
                                .map_or(range.end, |m| m.end);
                            let starts = pinned.iter().map(|(o, _)| *o).filter(|o| *o > at);
                            let gap = starts.fold(gap, u64::min);
                            missing.push(at..gap);
                            at = gap;
                        }
                    }
                }
                if missing.is_empty() {
                    return Ok(slices);
                }
                let mut flights = Vec::new();
                for gap in missing {
                    let under_way = state.flights.iter().find(|f| {
                        f.version == state.version && f.range.start <= gap.start && gap.start < f.range.end
                    });
                    match under_way {
                        Some(flight) => flights.push(Arc::clone(flight)),
                        None => {
                            let end = gap.end.min(gap.start + self.env.tuning.part_max);
                            let starts = state.flights.iter().filter(|f| f.version == state.version);
                            let starts = starts.map(|f| f.range.start).filter(|s| *s > gap.start);
                            let end = starts.fold(end, u64::min);
                            let class = size_class(end - gap.start);
                            let permit = self.env.budget.try_acquire(Kind::Cached, class);
                            // Without room only as much as is set aside for that.
                            let end = match permit {
                                Some(_) => end,
                                None => end.min(gap.start + PROGRESS_BYTES as u64),
                            };
                            flights.push(self.start(&mut state, gap.start..end, permit));
                        }
                    }
                }
                flights
            };
            for flight in flights {
                match flight.wait().await {
                    Landed::Here(slice) => pinned.push((flight.range.start, slice)),
                    Landed::Failed(error) => return Err(error),
                    Landed::Changed | Landed::Unproven(..) => return Err(FileError::Stale),
                }
            }
        }
    }

    /// Flights that will bring `missing`: those under way, and new ones for the rest.
    fn demand(self: &Arc<Self>, state: &mut State, missing: &[Range<u64>]) -> Vec<Arc<Flight>> {
        let tuning = &self.env.tuning;
        let size = state.base.as_ref().map_or(0, |b| b.size);
        for gap in missing {
            let rounded = if size <= tuning.small_file {
                0..size
            } else {
                gap.start / tuning.round * tuning.round..gap.end.div_ceil(tuning.round) * tuning.round
            };
            let wanted = state.wanted(rounded.start..rounded.end.min(size));
            // One request with a little too much is quicker than two.
            let bytes: u64 = wanted.iter().map(|r| r.end - r.start).sum();
            let hull = match (wanted.first(), wanted.last()) {
                (Some(first), Some(last)) => first.start..last.end,
                _ => continue,
            };
            let ranges = if (hull.end - hull.start) <= bytes * 2 {
                vec![hull]
            } else {
                wanted
            };
            for range in ranges {
                for piece in pieces(range, tuning.part_max) {
                    self.start(state, piece, None);
                }
            }
        }
        let version = state.version;
        let touches = |f: &Flight, gap: &Range<u64>| f.range.start < gap.end && gap.start < f.range.end;
        let flights = state.flights.iter();
        flights
            .filter(|f| f.version == version && missing.iter().any(|gap| touches(f, gap)))
            .cloned()
            .collect()
    }

    /// Tells the handle's streams about a read and starts what they want to have ahead.
    fn look_ahead(self: &Arc<Self>, state: &mut State, reader: &Reader, offset: u64, end: u64, waited: bool) {
        if state.base_valid == 0 || state.is_superseded() {
            return;
        }
        let tuning = &self.env.tuning;
        let mut streams = reader
            .streams
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let advice = streams.note(offset, end, waited, &self.pace, &self.env.budget, tuning);
        let Advice::Ahead { from, to, part } = advice else {
            return;
        };
        state.cache.consumed(offset.saturating_sub(1));
        let to = to.min(state.base_valid);
        let mut at = from;
        let mut issued = from;
        while at < to {
            let next = ((at / part + 1) * part).min(state.base_valid);
            for range in state.wanted(at..next) {
                let class = size_class(range.end - range.start);
                let Some(permit) = self.env.budget.try_acquire(Kind::Cached, class) else {
                    streams.issued(offset, issued);
                    return;
                };
                self.start(state, range, Some(permit));
            }
            at = next;
            issued = next;
        }
        streams.issued(offset, issued);
    }

    /// A small file is about to be changed: what is kept of it is sent again by the commit. Read now, its
    /// bytes tell until then whether a new version has the same content.
    pub(super) fn read_small(self: &Arc<Self>, state: &mut State, change: &Range<u64>) {
        let Some(base) = &state.base else { return };
        let all = 0..base.size;
        let replaced = change.start == 0 && base.size <= change.end;
        if !base.writable() || base.size > self.env.tuning.small_file || state.base_valid == 0 || replaced {
            return;
        }
        if !state.flights.is_empty() || state.cache.missing(all.clone()).is_empty() {
            return;
        }
        if let Some(permit) = self.env.budget.try_acquire(Kind::Cached, size_class(all.end)) {
            self.start(state, all, Some(permit));
        }
    }

    /// Starts a GET; its result goes to the cache even when nobody waits any more.
    fn start(self: &Arc<Self>, state: &mut State, range: Range<u64>, permit: Option<Permit>) -> Arc<Flight> {
        // One request sees one version anyway.
        if !state.flights.is_empty() || !state.cache.is_empty() {
            self.ask_for_blocks(state);
        }
        let flight = Arc::new(Flight::new(
            range.clone(),
            state.version,
            state.base.as_ref().map(|base| base.etag.clone()),
        ));
        state.flights.push(Arc::clone(&flight));
        let blob = state.blob.clone();
        let base = state.base.clone();
        let core = Arc::clone(self);
        let landing = Landing {
            core: Arc::clone(self),
            flight: Arc::clone(&flight),
            done: false,
        };
        spawn(&self.env.runtime, async move {
            let (landed, charge) = core.get(&blob, range, base.as_ref(), permit).await;
            landing.land(landed, charge);
        });
        flight
    }

    async fn get(
        &self,
        blob: &str,
        range: Range<u64>,
        base: Option<&BaseVersion>,
        permit: Option<Permit>,
    ) -> (Landed, Option<Permit>) {
        let len = range.end - range.start;
        let (permit, _progress) = match permit {
            Some(permit) => (permit, None),
            None => self.env.share.acquire_read(size_class(len)).await,
        };
        let begun = std::time::Instant::now();
        // What is in an append blob stays as it is: it does not matter that somebody appends.
        let condition = match base {
            Some(base) if base.kind != BlobType::Append => Condition::matches(&base.etag),
            _ => Condition::none(),
        };
        let mut got = self.get_once(blob, range.clone(), &condition).await;
        let appended = |got: &Properties| {
            base.is_some_and(|base| base.etag == got.etag)
                || base
                    .and_then(|base| by_properties(base, got))
                    .unwrap_or(Relation::Replaced)
                    != Relation::Replaced
        };
        match &got {
            Ok(Some((_, now))) if condition.if_match.is_none() && base.is_some() && !appended(now) => {
                return (Landed::Changed, None);
            }
            // Somebody may have put something behind the content, and may go on to: the bytes are fetched as
            // they are now, and who waits for them finds out whether they are still those of the base.
            Err(FileError::Client(error)) if matches!(**error, Error::ConditionNotMet { .. }) => {
                got = self.get_once(blob, range, &Condition::none()).await;
            }
            _ => {}
        }
        match got {
            Ok(Some((slice, now))) if slice.len() as u64 == len => {
                self.pace.arrived(len, begun.elapsed());
                let base = base.map(|base| &base.etag);
                match condition.if_match.is_none() || base == Some(&now.etag) {
                    true => (Landed::Here(slice), Some(permit)),
                    false => (Landed::Unproven(slice, now.etag), None),
                }
            }
            // Shorter than the version asked for: it cannot be that version.
            Ok(_) => (Landed::Changed, None),
            Err(error) => (Landed::Failed(error), None),
        }
    }

    /// `None`: there is no such blob.
    async fn get_once(
        &self,
        blob: &str,
        range: Range<u64>,
        condition: &Condition,
    ) -> Result<Option<(Slice, Properties)>, FileError> {
        let buffer = self.buffer((range.end - range.start) as usize)?;
        match self.env.store.get(blob, range, condition, buffer).await {
            Ok(got) => Ok(Some((got.buffer.freeze(), got.properties))),
            Err(Error::BlobNotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl State {
    /// Drops what a reader holds of `version` and the base does not have any more. The rest is of the base's
    /// version from now on.
    fn keep_pinned(&self, pinned: &mut Vec<(u64, Slice)>, version: &mut u64) {
        let held = std::mem::replace(version, self.version);
        pinned.retain(|(start, slice)| self.still(held, start + slice.len() as u64));
    }
}

fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (range.start..range.end).step_by(most.max(1) as usize);
    starts.map(move |start| start..range.end.min(start + most))
}
