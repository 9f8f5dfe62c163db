//! Random operations on a file and on a vector of bytes give the same content.

use std::sync::Arc;

use blob_client::{BlockId, Metadata};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::store::fake::{Fault, Op};

#[derive(Debug, Clone)]
enum Step {
    /// Offset, length, first byte.
    Write(u64, usize, u8),
    Append(usize),
    Truncate(u64),
    Punch(u64, u64),
    Allocate(u64, u64),
    Read(u64, usize),
    Commit,
    CommitAndWrite(u64, usize, u8),
    Reopen,
    Evict,
    Relieve,
    Rename,
    MetadataChange,
    CopyWithin(u64, u64, u64),
    FailStage,
    LoseCommit,
    LoseAnswer,
    ServerCopy(bool),
    SeekHole(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..400, 1usize..90, 1u8..99).prop_map(|(at, len, b)| Step::Write(at, len, b)),
        4 => (1usize..70).prop_map(Step::Append),
        2 => (0u64..500).prop_map(Step::Truncate),
        2 => (0u64..400, 1u64..100).prop_map(|(at, len)| Step::Punch(at, len)),
        1 => (0u64..400, 1u64..100).prop_map(|(at, len)| Step::Allocate(at, len)),
        6 => (0u64..450, 1usize..200).prop_map(|(at, len)| Step::Read(at, len)),
        4 => Just(Step::Commit),
        2 => (0u64..400, 1usize..90, 1u8..99).prop_map(|(at, len, b)| Step::CommitAndWrite(at, len, b)),
        2 => Just(Step::Reopen),
        1 => Just(Step::Evict),
        2 => Just(Step::Relieve),
        1 => Just(Step::Rename),
        1 => Just(Step::MetadataChange),
        2 => (0u64..400, 0u64..400, 1u64..120).prop_map(|(a, b, n)| Step::CopyWithin(a, b, n)),
        1 => Just(Step::FailStage),
        1 => Just(Step::LoseCommit),
        1 => Just(Step::LoseAnswer),
        1 => any::<bool>().prop_map(Step::ServerCopy),
        1 => (0u64..450).prop_map(Step::SeekHole),
    ]
}

/// What the blob is before the file is opened.
#[derive(Debug, Clone)]
enum Start {
    Nothing,
    Put(usize),
    /// Sizes of blocks, length of their ids.
    Blocks(Vec<usize>, usize),
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Nothing),
        (0usize..400).prop_map(Start::Put),
        (prop::collection::vec(1usize..90, 1..8), 4usize..64).prop_map(|(s, n)| Start::Blocks(s, n)),
    ]
}

/// So many bytes, counting up.
fn bytes(len: usize, first: u8) -> Vec<u8> {
    (0..len).map(|n| first.wrapping_add(n as u8)).collect()
}

fn put_at(model: &mut Vec<u8>, at: u64, data: &[u8]) {
    let at = at as usize;
    if model.len() < at + data.len() {
        model.resize(at + data.len(), 0);
    }
    model[at..at + data.len()].copy_from_slice(data);
}

struct Run {
    world: World,
    file: Arc<File>,
    model: Vec<u8>,
    reader: Reader,
    name: String,
    names: usize,
}

impl Run {
    fn new(start: &Start) -> Self {
        let world = World::new(0, tiny());
        let mut model = Vec::new();
        match start {
            Start::Nothing => {}
            Start::Put(len) => {
                let data = pattern(0, *len);
                model = data.clone();
                world.store.foreign_put("file", data, Metadata::new());
            }
            Start::Blocks(sizes, id_len) => {
                let mut blocks = Vec::new();
                for (n, size) in sizes.iter().enumerate() {
                    let data = pattern(model.len() as u64, *size);
                    model.extend_from_slice(&data);
                    let mut id = vec![b'x'; *id_len];
                    id[0] = n as u8;
                    blocks.push((BlockId(id), Bytes::from(data)));
                }
                world.store.foreign_blocks("file", blocks);
            }
        }
        let file = match start {
            Start::Nothing => world.create(),
            _ => world.open(),
        };
        Self {
            world,
            file,
            model,
            reader: Reader::default(),
            name: "file".into(),
            names: 0,
        }
    }

    async fn commit(&mut self) {
        // Each fault on command hits once; what is kept is never lost by that.
        for _ in 0..500 {
            if self.file.commit(Metadata::new()).await.is_ok() {
                break;
            }
        }
        assert!(!self.file.is_dirty());
        self.file.core.lock().overlay.is_empty().then_some(()).unwrap();
        let content = self.world.store.content(&self.name).unwrap();
        assert_eq!(&content[..], &self.model[..]);
    }

    fn reopen(&mut self) {
        let now = self.world.store.properties(&self.name).unwrap();
        let base = Base::from(&now);
        self.file = File::open(self.world.env.clone(), self.name.clone(), base);
        self.reader = Reader::default();
    }

    async fn check(&self, at: u64, len: usize) {
        let end = self.model.len().min(at as usize + len);
        let expected = self.model.get(at as usize..end).unwrap_or(&[]);
        if let Some(data) = self.file.try_read(&self.reader, at, len) {
            assert_eq!(&data[..], expected, "try_read at {at}");
        }
        let data = loop {
            match self.file.read(&self.reader, at, len).await {
                Ok(data) => break data,
                // A read of staged data commits, and a commit may meet a fault.
                Err(FileError::Client(_)) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(&data[..], expected, "read at {at}");
    }

    async fn retry<F, T>(&self, mut run: F) -> T
    where
        F: AsyncFnMut() -> Result<T, FileError>,
    {
        for _ in 0..500 {
            match run().await {
                Ok(done) => return done,
                Err(FileError::Client(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("fails for ever");
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Write(at, len, byte) => {
                let data = &bytes(*len, *byte);
                if !self.file.try_write(*at, data).unwrap() {
                    self.retry(async || self.file.write(*at, data).await).await;
                }
                put_at(&mut self.model, *at, data);
            }
            Step::Append(len) => {
                let at = self.model.len() as u64;
                let data = pattern(at, *len);
                self.retry(async || self.file.write(At::End, &data).await).await;
                put_at(&mut self.model, at, &data);
            }
            Step::Truncate(size) => {
                self.retry(async || self.file.truncate(*size).await).await;
                self.model.resize(*size as usize, 0);
            }
            Step::Punch(at, len) => {
                self.retry(async || self.file.punch_hole(*at, *len).await).await;
                let end = self.model.len().min((at + len) as usize);
                if let Some(range) = self.model.get_mut(*at as usize..end) {
                    range.fill(0);
                }
            }
            Step::Allocate(at, len) => {
                self.file.allocate(*at, *len, false).await.unwrap();
                let len = self.model.len().max((at + len) as usize);
                self.model.resize(len, 0);
            }
            Step::Read(at, len) => self.check(*at, *len).await,
            Step::Commit => self.commit().await,
            Step::CommitAndWrite(at, len, byte) => {
                let data = &bytes(*len, *byte);
                let file = Arc::clone(&self.file);
                let commit = tokio::spawn(async move { file.commit(Metadata::new()).await });
                tokio::task::yield_now().await;
                self.retry(async || self.file.write(*at, data).await).await;
                put_at(&mut self.model, *at, data);
                let _ = commit.await.unwrap();
            }
            Step::Reopen => {
                self.commit().await;
                self.reopen();
            }
            Step::Evict => while self.world.env.budget.evict_one() {},
            Step::Relieve => {
                self.world.env.budget.relieve(1, None);
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                // The second time drops what was staged the first time.
                self.world.env.budget.relieve(1, None);
            }
            Step::Rename => {
                let hold = self.retry(async || self.file.hold().await).await;
                // Memory is short in the middle of it.
                for _ in 0..2 {
                    self.world.env.budget.relieve(1, None);
                    for _ in 0..5 {
                        tokio::task::yield_now().await;
                    }
                }
                self.names += 1;
                let name = format!("file{}", self.names);
                let copied = match self.file.etag() {
                    None => None,
                    Some(etag) => {
                        let absent = blob_client::Condition::absent();
                        let store = &self.world.store;
                        let copied = store
                            .copy(&self.name, Some(&etag), None, &name, None, &absent)
                            .await;
                        assert!(store.foreign_delete(&self.name));
                        Some(copied.unwrap())
                    }
                };
                let stored = self.file.stored_metadata().unwrap_or_default();
                self.file
                    .moved(name.clone(), copied.as_ref().map(|copied| (copied, &stored)));
                self.name = name;
                drop(hold);
            }
            Step::MetadataChange => {
                let hold = self.retry(async || self.file.hold().await).await;
                if let Some(etag) = self.file.etag() {
                    let condition = blob_client::Condition::matches(&etag);
                    let metadata = Metadata::from([("k".into(), self.names.to_string())]);
                    let store = &self.world.store;
                    let written = store
                        .set_metadata(&self.name, &metadata, &condition)
                        .await
                        .unwrap();
                    self.file.rebase(&written, &metadata);
                }
                drop(hold);
            }
            Step::CopyWithin(from, to, len) => {
                let model_len = self.model.len() as u64;
                let len = (*len).min(model_len.saturating_sub(*from));
                if len == 0 || from.abs_diff(*to) < len {
                    return;
                }
                let mut done = 0;
                while done < len {
                    let (a, b, n) = (from + done, to + done, len - done);
                    done += self
                        .retry(async || self.file.copy_from(&self.file, a, b, n).await)
                        .await;
                }
                let data = self.model[*from as usize..(*from + len) as usize].to_vec();
                put_at(&mut self.model, *to, &data);
            }
            Step::FailStage => self.world.store.fail(Op::Stage, Fault::Lost, 1),
            Step::LoseCommit => {
                self.world.store.fail(Op::Commit, Fault::Lost, 1);
                self.world.store.fail(Op::Put, Fault::Lost, 1);
            }
            Step::LoseAnswer => {
                self.world.store.fail(Op::Commit, Fault::AnswerLost, 1);
                self.world.store.fail(Op::Put, Fault::AnswerLost, 1);
                // So that the outcome stays in doubt until the next commit.
                self.world.store.fail(Op::Head, Fault::Lost, 1);
            }
            Step::ServerCopy(on) => {
                self.world.store.refuse_stage_from(!*on);
                self.world
                    .env
                    .server_copy
                    .store(true, std::sync::atomic::Ordering::Relaxed);
            }
            Step::SeekHole(at) => {
                let hole = self.file.seek_hole(*at).await.unwrap();
                let data = self.file.seek_data(*at).await.unwrap();
                if *at >= self.model.len() as u64 {
                    assert_eq!((hole, data), (None, None));
                    return;
                }
                // What is said to be a hole is zeros.
                let to = data.unwrap_or(self.model.len() as u64);
                assert!(self.model[*at as usize..to as usize].iter().all(|b| *b == 0));
                assert!(hole.unwrap() <= self.model.len() as u64);
            }
        }
        assert_eq!(self.file.size(), self.model.len() as u64);
    }
}

fn run(start: &Start, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut run = Run::new(start);
        for step in steps {
            run.step(step).await;
        }
        run.check(0, 1000).await;
        run.commit().await;
        run.reopen();
        run.check(0, 1000).await;
        // Nothing is held for a file that is gone.
        let World { env, .. } = run.world;
        drop(run.file);
        drop(run.reader);
        for _ in 0..100 {
            if env.arena.usage().allocated == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(env.arena.usage().allocated, 0);
        assert_eq!(env.budget.usage().dirty + env.budget.usage().cached, 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_bytes(start in start(), steps in prop::collection::vec(step(), 1..60)) {
        run(&start, &steps);
    }
}
