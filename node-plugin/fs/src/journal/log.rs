//! The append-only log in a memfd: who is which node, which handles are open, what was answered.
//!
//! Layout: the first page holds two header slots; the valid one with the higher generation names where the
//! records start. A record is its length and CRC-32C (4 bytes each, little-endian), a tag byte and its
//! fields. The end is where no valid record follows, so a record torn by `kill -9` in the middle of a write
//! is the end, and nothing else is lost. Compaction writes the live state as a new run of records behind the
//! old one, switches the header, and punches the old run out of the file: offsets only grow, memory does not.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::codec::{CRC, Fields, MAX_RECORD, decode, encode};
use super::record::Record;
use super::state::State;
use crate::budget::{Budget, Permit};

const MAGIC: &[u8; 8] = b"vscblobj";
const VERSION: u32 = 1;
const PAGE: u64 = 4096;
const SLOT: u64 = 64;
/// Memory of the log is counted in steps of so many bytes.
const CHARGED: u64 = 64 * 1024;
/// The log is not compacted before it has this many bytes.
const MIN_COMPACT: u64 = 1024 * 1024;

#[derive(Debug)]
struct Position {
    /// Generation of the header in force.
    generation: u64,
    /// Where the records start.
    start: u64,
    /// Where the next record goes.
    end: u64,
    /// Compact when the run is longer than this.
    compact_at: u64,
    /// For the run, when the budget knows of it.
    charge: Option<Permit>,
}

impl Position {
    /// The run takes this much memory, and `more` for a while.
    fn count(&mut self, more: u64) {
        let bytes = (self.end - self.start + more).next_multiple_of(CHARGED) as usize;
        if let Some(charge) = self.charge.as_mut().filter(|charge| charge.bytes() != bytes) {
            charge.count(bytes);
        }
    }
}

/// The log. Appending is one write to memory.
#[derive(Debug)]
pub struct Log {
    file: File,
    position: Mutex<Position>,
}

impl Log {
    /// An empty log in a new memfd.
    pub fn create() -> io::Result<Self> {
        let file = File::from(memfd_create("vsc-blob-journal", MFdFlags::MFD_CLOEXEC)?);
        let log = Self {
            file,
            position: Mutex::new(Position {
                generation: 0,
                start: PAGE,
                end: PAGE,
                compact_at: MIN_COMPACT,
                charge: None,
            }),
        };
        log.switch(&mut log.position(), PAGE)?;
        Ok(log)
    }

    /// The log another process wrote, and what it says. Appending goes on at its end.
    pub fn open(fd: OwnedFd) -> io::Result<(Self, State)> {
        let file = File::from(fd);
        let (generation, start) = (0..2)
            .filter_map(|slot| read_slot(&file, slot))
            .max()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the journal has no valid header"))?;
        let mut state = State::default();
        let end = replay(&file, start, &mut state)?;
        let position = Position {
            generation,
            start,
            end,
            compact_at: (2 * (end - start)).max(MIN_COMPACT),
            charge: None,
        };
        Ok((
            Self {
                file,
                position: Mutex::new(position),
            },
            state,
        ))
    }

    /// Its memory counts as metadata of `budget` from now on.
    pub(crate) fn charged(self, budget: &Arc<Budget>) -> Self {
        let charge = budget.charge_metadata(0);
        let mut position = self.position();
        position.charge = Some(charge);
        position.count(0);
        drop(position);
        self
    }

    /// The memfd (handed to the keeper).
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Appends records in this order.
    pub fn append(&self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * 64);
        for record in records {
            encode(record, &mut bytes);
        }
        let mut position = self.position();
        self.file.write_all_at(&bytes, position.end)?;
        position.end += bytes.len() as u64;
        let run = position.end - position.start;
        let compacted = if run > position.compact_at {
            // What it says is in memory meanwhile, and once more as the new run.
            position.count(2 * run);
            self.compact(&mut position)
        } else {
            Ok(())
        };
        position.count(0);
        compacted
    }

    /// Bytes of the run in force.
    pub fn len(&self) -> u64 {
        let position = self.position();
        position.end - position.start
    }

    /// True when nothing was recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the log says now.
    pub fn state(&self) -> io::Result<State> {
        let position = self.position();
        let mut state = State::default();
        replay(&self.file, position.start, &mut state)?;
        Ok(state)
    }

    fn compact(&self, position: &mut Position) -> io::Result<()> {
        // The live state is read back from the log itself: it is rare, and nobody has to keep a second copy
        // for it.
        let mut state = State::default();
        replay(&self.file, position.start, &mut state)?;
        let mut bytes = Vec::new();
        for record in state.records() {
            encode(&record, &mut bytes);
        }
        let start = (position.end + MAX_RECORD as u64).next_multiple_of(PAGE);
        self.file.write_all_at(&bytes, start)?;
        let old = position.start..position.end;
        self.switch(position, start)?;
        position.end = start + bytes.len() as u64;
        position.compact_at = (2 * bytes.len() as u64).max(MIN_COMPACT);
        let (offset, len) = (old.start as i64, (old.end - old.start) as i64);
        if len > 0 {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, punch, offset, len)?;
        }
        Ok(())
    }

    /// Writes the header slot that is not in force, which puts it in force.
    fn switch(&self, position: &mut Position, start: u64) -> io::Result<()> {
        let generation = position.generation + 1;
        let mut slot = Vec::with_capacity(SLOT as usize);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&VERSION.to_le_bytes());
        slot.extend_from_slice(&generation.to_le_bytes());
        slot.extend_from_slice(&start.to_le_bytes());
        slot.extend_from_slice(&CRC.checksum(&slot).to_le_bytes());
        self.file.write_all_at(&slot, (generation % 2) * SLOT)?;
        position.generation = generation;
        position.start = start;
        Ok(())
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_slot(file: &File, slot: u64) -> Option<(u64, u64)> {
    let mut bytes = [0u8; 32];
    file.read_exact_at(&mut bytes, slot * SLOT).ok()?;
    let (body, crc) = bytes.split_at(28);
    let mut fields = Fields(body);
    let valid =
        fields.take(8)? == MAGIC && fields.u32()? == VERSION && CRC.checksum(body).to_le_bytes() == *crc;
    valid.then_some((fields.u64()?, fields.u64()?))
}

/// Applies every record from `start` on; the offset behind the last valid one.
fn replay(file: &File, start: u64, state: &mut State) -> io::Result<u64> {
    let mut at = start;
    let mut bytes = vec![0; 4 * MAX_RECORD];
    loop {
        // Refilled in large pieces; a record never needs more than MAX_RECORD + 8 bytes.
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], at + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        let mut rest = Fields(&bytes[..filled]);
        let mut used = 0;
        while rest.0.len() >= MAX_RECORD + 8 || filled < bytes.len() {
            let before = rest.0.len();
            match decode(&mut rest) {
                Some(record) => state.apply(record),
                None => return Ok(at + used as u64),
            }
            used += before - rest.0.len();
        }
        at += used as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        prop::collection::vec(record(), 0..200)
    }

    fn record() -> impl Strategy<Value = Record> {
        let id = 1u64..40;
        prop_oneof![
            (id.clone(), 0u64..40, "\\PC{0,12}").prop_map(|(id, parent, name)| Record::Node {
                id,
                parent,
                name
            }),
            id.clone().prop_map(|id| Record::Forget { id }),
            (id.clone(), 1u64..40, any::<i32>(), "[0-9a-fx\"]{0,12}").prop_map(
                |(fh, node, flags, generation)| Record::Handle {
                    fh,
                    node,
                    flags,
                    generation
                }
            ),
            id.prop_map(|fh| Record::Release { fh }),
            dirty(),
            (any::<u64>(), any::<i32>(), any::<u64>(), any::<u64>()).prop_map(|(unique, errno, node, fh)| {
                Record::Reply {
                    unique,
                    errno,
                    node,
                    fh,
                }
            }),
        ]
    }

    /// Changes of a few files at a few places, so that they meet.
    fn dirty() -> impl Strategy<Value = Record> {
        (1u64..4, 0u64..50, 1u64..20, 0u64..40, 0u8..12).prop_map(|(node, offset, len, arena, what)| {
            match what {
                0 => Record::Hole { node, offset, len },
                1 => Record::Size { node, size: offset },
                2 => Record::Block {
                    node,
                    offset,
                    len,
                    id: vec![arena as u8],
                },
                3 => Record::BeginCommit { node },
                5 => Record::Discard { node },
                6 => Record::Sent {
                    node,
                    id: vec![arena as u8],
                },
                7 => Record::Unstaged {
                    node,
                    id: vec![arena as u8],
                },
                8 => Record::Metadata {
                    node,
                    metadata: [
                        ("mode".to_owned(), arena.to_string()),
                        ("ü".to_owned(), String::new()),
                    ]
                    .into(),
                },
                4 => Record::Committed {
                    node,
                    etag: arena.to_string(),
                },
                _ => Record::Dirty {
                    node,
                    offset,
                    len,
                    arena,
                },
            }
        })
    }

    fn expected(records: &[Record]) -> State {
        let mut state = State::default();
        records.iter().cloned().for_each(|r| state.apply(r));
        state
    }

    #[test]
    fn its_memory_is_counted() {
        let budget = Budget::new(32 << 20);
        let log = Log::create().unwrap().charged(&budget);
        let name = "n".repeat(200);
        let (mut most, mut compacted) = (0, false);
        for round in 0..60_000 {
            let node = Record::Node {
                // The same nodes again and again: what was said of them before is compacted away.
                id: 1 + round % 1000,
                parent: 1,
                name: name.clone(),
            };
            log.append(&[node]).unwrap();
            let counted = budget.usage().metadata as u64;
            assert!(
                (log.len()..=log.len() + CHARGED).contains(&counted),
                "{counted} for {}",
                log.len()
            );
            compacted |= counted < most;
            most = most.max(counted);
        }
        assert!(compacted);
        drop(log);
        assert_eq!(budget.usage().metadata, 0);
    }

    proptest! {
        #[test]
        fn a_replayed_log_gives_the_same_state(records in records(), split in 1usize..20) {
            let log = Log::create().unwrap();
            records.chunks(split).for_each(|chunk| log.append(chunk).unwrap());
            let (again, state) = Log::open(log.memfd().try_clone_to_owned().unwrap()).unwrap();
            prop_assert_eq!(&state, &expected(&records));
            // The next process goes on where the last one stopped.
            let more = Record::Node { id: 99, parent: 1, name: "more".into() };
            again.append(std::slice::from_ref(&more)).unwrap();
            let all: Vec<_> = records.into_iter().chain([more]).collect();
            prop_assert_eq!(again.state().unwrap(), expected(&all));
        }

        #[test]
        fn compaction_changes_nothing(records in records(), times in 1usize..4) {
            let log = Log::create().unwrap();
            log.append(&records).unwrap();
            for _ in 0..times {
                log.compact(&mut log.position()).unwrap();
            }
            let (_, state) = Log::open(log.memfd().try_clone_to_owned().unwrap()).unwrap();
            prop_assert_eq!(state, expected(&records));
        }

        #[test]
        fn a_torn_tail_loses_only_the_torn_record(
            records in prop::collection::vec(record(), 1..50),
            cut in 1u64..8,
        ) {
            let log = Log::create().unwrap();
            let (last, first) = records.split_last().unwrap();
            log.append(first).unwrap();
            log.append(std::slice::from_ref(last)).unwrap();
            let end = log.position().end;
            log.file.set_len(end - cut).unwrap();
            let (_, state) = Log::open(log.memfd().try_clone_to_owned().unwrap()).unwrap();
            prop_assert_eq!(state, expected(first));
        }
    }

    /// Where the bytes of a file are is never in doubt: in memory, in a staged block, or in what is
    /// committed.
    #[test]
    fn blocks_and_memory_take_each_others_place() {
        let log = Log::create().unwrap();
        let file = || log.state().unwrap().dirty.remove(&5).unwrap_or_default();
        let say = |record| log.append(&[record]).unwrap();
        let id = |n: u8| vec![n];
        let (node, arena) = (5, 4096);
        let dirty = |offset, len| Record::Dirty {
            node,
            offset,
            len,
            arena,
        };
        let block = |n, offset, len| Record::Block {
            node,
            offset,
            len,
            id: id(n),
        };
        let metadata: std::collections::BTreeMap<_, _> = [("mode".to_owned(), "600".to_owned())].into();
        say(Record::Metadata {
            node,
            metadata: metadata.clone(),
        });
        say(dirty(0, 100));
        say(block(1, 0, 50));
        say(block(2, 50, 50));
        assert_eq!(file().extents.len(), 1, "a block on its way changes nothing");
        // The memory of the first block is given back.
        say(Record::Sent { node, id: id(1) });
        let now = file();
        assert_eq!(now.extents.keys().copied().collect::<Vec<_>>(), [50]);
        assert_eq!((now.blocks[&id(1)].only, now.blocks[&id(2)].only), (true, false));
        // Part of the second block is written again, then it fails.
        say(dirty(60, 5));
        assert_eq!(file().blocks.into_keys().collect::<Vec<_>>(), [id(1)]);
        say(block(3, 50, 10));
        say(Record::Unstaged { node, id: id(3) });
        assert_eq!(file().blocks.len(), 1);
        // A cut takes what is past it, a write behind it makes the file longer.
        say(block(4, 90, 10));
        say(Record::Size { node, size: 80 });
        assert_eq!(file().blocks.len(), 1);
        say(dirty(200, 10));
        assert_eq!(file().size, Some((210, false)));
        // Blocks that a commit stages are not left over.
        say(Record::BeginCommit { node });
        say(block(5, 50, 30));
        say(Record::Committed {
            node,
            etag: "e".to_owned(),
        });
        assert_eq!(file(), Default::default());
    }

    /// Also when it cannot be compacted: what that would have taken is given back.
    #[test]
    fn a_log_that_cannot_be_compacted_takes_no_more_than_it_has() {
        let budget = Budget::new(32 << 20);
        let mut log = Log::create().unwrap().charged(&budget);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&log.file);
        let unreadable = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
        log.file = unreadable.unwrap();
        let record = Record::Node {
            id: 1,
            parent: 1,
            name: "n".repeat(200),
        };
        let records = vec![record; 1000];
        while log.append(&records).is_ok() {}
        let counted = budget.usage().metadata as u64;
        assert!(
            (log.len()..=log.len() + CHARGED).contains(&counted),
            "{counted} for {}",
            log.len()
        );
    }

    #[test]
    fn the_log_is_bounded() {
        let log = Log::create().unwrap();
        for round in 0..200u64 {
            let records: Vec<_> = (0..1000)
                .map(|i| Record::Node {
                    id: 2 + i,
                    parent: 1,
                    name: format!("name-{round}-{i}"),
                })
                .collect();
            log.append(&records).unwrap();
        }
        assert!(log.len() < 3 * MIN_COMPACT, "{} bytes", log.len());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&log.file.metadata().unwrap());
        assert!(blocks * 512 < 4 * MIN_COMPACT, "{blocks} blocks of memory");
        let state = log.state().unwrap();
        assert_eq!(state.nodes.len(), 1000);
        assert_eq!(state.nodes[&2], (1, "name-199-0".to_owned()));
    }

    #[test]
    fn counters_never_go_back() {
        let log = Log::create().unwrap();
        log.append(&[
            Record::Node {
                id: 7,
                parent: 1,
                name: "a".into(),
            },
            Record::Forget { id: 7 },
            Record::Handle {
                fh: 9,
                node: 7,
                flags: 0,
                generation: String::new(),
            },
            Record::Release { fh: 9 },
        ])
        .unwrap();
        log.compact(&mut log.position()).unwrap();
        let state = log.state().unwrap();
        assert_eq!((state.next_node, state.next_handle), (8, 10));
        assert!(state.nodes.is_empty() && state.handles.is_empty());
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let fd = memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap();
        assert_eq!(Log::open(fd).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
