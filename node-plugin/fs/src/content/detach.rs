//! Content that outlives its name: pinned in memory, or moved to a blob that no name leads to.

use std::ops::Range;
use std::sync::Arc;

use vsc_driver::buffer::Slice;

use super::base::BaseVersion;
use super::core::Core;
use super::error::FileError;
use super::overlay::Content;
use super::refuge::Refuge;
use super::state::{Detached, Place, State};
use crate::log_limit::limited;

/// Versions of others that are followed before the content is given up.
const TRIES: u32 = 5;

impl Core {
    pub(crate) async fn detach(self: &Arc<Self>, limit: u64) -> Result<bool, FileError> {
        let _still = self.hold().await?;
        let gaps = |state: &State| {
            let mut gaps = Vec::new();
            let mut at = 0;
            for (range, _, _) in state.overlay.segments(0..state.base_valid) {
                gaps.push(at..range.start);
                at = range.end;
            }
            gaps.push(at..state.base_valid);
            gaps.retain(|g| !g.is_empty());
            gaps
        };
        let mut tries = 0;
        let (loaded, mut room) = loop {
            let wanted = gaps(&self.lock());
            let bytes = wanted.iter().map(|g| g.end - g.start).sum::<u64>();
            if bytes > limit {
                return Ok(false);
            }
            // Any number of files may be deleted while they are open: they have the volume's room for dirty
            // data.
            let room = match bytes {
                0 => None,
                _ => match self.env.share.try_acquire(bytes as usize) {
                    Some(room) => Some(room),
                    None => return Ok(false),
                },
            };
            match self.load(wanted).await {
                Ok(loaded) => break (loaded, room),
                // It may be that only its attributes were changed.
                Err(FileError::Stale) if tries < TRIES => {
                    tries += 1;
                    self.follow().await?;
                }
                Err(error) => return Err(error),
            }
        };
        let mut state = self.lock();
        let owed = state.is_dirty();
        // Writes may have come meanwhile: they stay on top.
        let epoch = state.epoch;
        // Gaps only got smaller meanwhile.
        for (parts, bytes) in by_buffer(&gaps(&state), &loaded) {
            let Some(charge) = room.as_mut().map(|room| Arc::new(room.split(bytes))) else {
                continue;
            };
            for (range, part) in parts {
                let content = Content::Mem(part, Arc::clone(&charge));
                state.overlay.put(range, content, epoch);
            }
        }
        state.base_valid = 0;
        state.place = Place::Detached(Detached::Going { owed });
        state.version += 1;
        state.to_stage.clear();
        state.forget_past(0, &self.env.budget);
        if !state.overlay.is_empty() {
            self.register(&mut state);
        }
        Ok(true)
    }

    /// See [`super::File::attach`].
    pub(crate) fn attach(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        match state.place {
            Place::Detached(Detached::Going { owed: true }) if !state.is_superseded() => {}
            Place::Detached(_) | Place::Named | Place::Hidden { .. } => return false,
        }
        state.place = Place::Named;
        state.version += 1;
        self.register(&mut state);
        true
    }

    /// See [`super::File::departed`].
    pub(crate) fn departed(self: &Arc<Self>) {
        let mut state = self.lock();
        if let Place::Detached(Detached::Going { .. }) = state.place {
            state.place = Place::Detached(Detached::Gone);
        }
    }

    async fn load(self: &Arc<Self>, ranges: Vec<Range<u64>>) -> Result<Vec<(u64, Slice)>, FileError> {
        let mut loaded = Vec::new();
        for range in ranges {
            let mut at = range.start;
            for slice in self.read_base(range).await? {
                let len = slice.len() as u64;
                loaded.push((at, slice));
                at += len;
            }
        }
        Ok(loaded)
    }

    /// A detached file gets a blob that no name leads to, and is sent there like any other from now on.
    pub(crate) async fn take_shelter(self: &Arc<Self>, refuge: Arc<dyn Refuge>) {
        let made = refuge.make().await;
        let mut state = self.lock();
        let failed = made.is_err();
        let is_new = state.relief_over(failed.then(|| self.pause()));
        match made {
            Ok(shelter)
                if matches!(state.place, Place::Detached(Detached::Gone)) && !state.is_superseded() =>
            {
                state.blob = shelter.blob.clone();
                let headers = state.base.take().and_then(|base| base.stored);
                state.base = Some(BaseVersion::own(
                    shelter.written.etag.clone(),
                    0,
                    shelter.metadata.clone(),
                    headers,
                    Default::default(),
                ));
                state.metadata.replace(shelter.metadata.clone());
                state.known = Some(Arc::new(shelter.metadata.clone()));
                state.place = Place::Hidden {
                    lease: shelter.lease.clone(),
                    _shelter: Some(shelter),
                };
                state.ids.reset();
                state.version += 1;
            }
            // Somebody made it another file meanwhile; the blob goes with the guard.
            Ok(_) => {}
            Err(error) if is_new => {
                limited!(
                    warn,
                    self.env.share.id(),
                    "memory is short and the data of a deleted file cannot be sent",
                    blob = state.blob,
                    %error
                );
            }
            Err(_) => {}
        }
    }
}

/// The bytes of the gaps, those of one buffer together, and how many these are: they have one charge, as long
/// as one of them is there.
type Parts = (Vec<(Range<u64>, Slice)>, usize);

fn by_buffer(gaps: &[Range<u64>], loaded: &[(u64, Slice)]) -> Vec<Parts> {
    let mut buffers: Vec<Parts> = Vec::new();
    for gap in gaps {
        for (start, slice) in loaded {
            let range = gap.start.max(*start)..gap.end.min(start + slice.len() as u64);
            if range.is_empty() {
                continue;
            }
            let part = slice.slice((range.start - start) as usize..(range.end - start) as usize);
            let len = part.len();
            let of_it = |(parts, _): &&mut Parts| parts.iter().any(|(_, other)| other.is_of_buffer(&part));
            match buffers.iter_mut().find(of_it) {
                Some((parts, bytes)) => {
                    parts.push((range, part));
                    *bytes += len;
                }
                None => buffers.push((vec![(range, part)], len)),
            }
        }
    }
    buffers
}
