//! The calls themselves: counted, held up, and executed with the fault that is due.

use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use blob_client::{
    BlockId, BlockList, BlockRef, Body, Condition, ContainerState, ETag, Error, Got, ListOptions, ListPage,
    Metadata, Piece, Progress, Properties, PutOptions, Result, StageOptions, StoredHeaders, Written,
};
use bytes::Bytes;
use vsc_driver::buffer::Buffer;

use super::fault::{Fault, Op};
use super::rules::{Service, refusal};
use super::{FakeStore, Straggler};
use crate::store::Store;

impl FakeStore {
    /// Counts the call, lets it wait, and runs it with the fault that is due.
    async fn call<T>(
        &self,
        op: Op,
        run: impl Fn(&mut Service) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let answer = self.carry_out(op, run).await;
        match &answer {
            Err(Error::DeadlineExceeded { .. } | Error::Unreachable { .. }) => {}
            Err(Error::Service { status: 500.., .. }) => {}
            _ => self.progress.note(),
        }
        answer
    }

    /// The same for one that stores data of a file.
    async fn storing<T>(
        &self,
        op: Op,
        run: impl Fn(&mut Service) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let answer = self.call(op, run).await;
        if answer.is_ok() {
            self.progress.note_stored();
        }
        answer
    }

    async fn carry_out<T>(
        &self,
        op: Op,
        run: impl Fn(&mut Service) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let (fault, delay) = {
            let mut locked = self.lock();
            let state = &mut *locked;
            *state.counters.calls.entry(op).or_default() += 1;
            state.running += 1;
            state.counters.most_at_once = state.counters.most_at_once.max(state.running);
            (state.plan.next(op), state.delay)
        };
        let _running = Running(self);
        if !*self.gate.borrow() {
            self.arrived.add_permits(1);
            let _ = self.gate.subscribe().wait_for(|open| *open).await;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let execute = || {
            let mut state = self.lock();
            state.turn();
            run(&mut state.service)
        };
        let answer = match fault {
            None | Some(Fault::Doubled(_)) => execute(),
            Some(Fault::Executed(..) | Fault::AnswerLost) => {
                let _ = execute();
                Err(Error::DeadlineExceeded { waited: delay })
            }
            Some(Fault::Late(_)) => Err(Error::DeadlineExceeded { waited: delay }),
            Some(Fault::Lost) => Err(Error::Unreachable {
                endpoint: "http://fake".into(),
                message: "fault on command".into(),
            }),
            Some(Fault::Status(status, code)) => Err(refusal(status, code)),
            #[allow(clippy::panic, reason = "that is the fault")]
            Some(Fault::Panic) => panic!("fault on command"),
        };
        match fault {
            Some(Fault::Late(after) | Fault::Doubled(after)) => {
                let run = Box::new(move |service: &mut Service| run(service).is_ok());
                self.lock().stragglers.push(Straggler { op, after, run });
                answer
            }
            Some(Fault::Executed(status, code)) => Err(refusal(status, code)),
            Some(_) => answer,
            None => {
                if *self.held.borrow() == Some(op) {
                    self.arrived.add_permits(1);
                    let _ = self.held.subscribe().wait_for(|held| *held != Some(op)).await;
                }
                answer
            }
        }
    }
}

impl FakeStore {
    /// Waits until deletions need not wait for requests that were lost.
    async fn settled(&self) {
        let _ = self.unsettled.subscribe().wait_for(|unsettled| !*unsettled).await;
    }
}

struct Running<'a>(&'a FakeStore);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

fn gather(body: &Body) -> Bytes {
    let mut data = Vec::with_capacity(body.len() as usize);
    for piece in &body.0 {
        match piece {
            Piece::Bytes(b) => data.extend_from_slice(b),
            Piece::Slice(s) => data.extend_from_slice(s),
        }
    }
    data.into()
}

#[async_trait]
impl Store for FakeStore {
    async fn get(
        &self,
        blob: &str,
        range: Range<u64>,
        condition: &Condition,
        mut dest: Buffer,
    ) -> Result<Got> {
        let (blob, condition) = (blob.to_owned(), condition.clone());
        let (data, properties) = self
            .call(Op::Get, move |service| service.get(&blob, &range, &condition))
            .await?;
        dest.set_len(data.len());
        dest.copy_from_slice(&data);
        Ok(Got {
            buffer: dest,
            properties,
        })
    }

    async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        let (blob, condition) = (blob.to_owned(), condition.clone());
        self.call(Op::Head, move |service| service.head(&blob, &condition))
            .await
    }

    async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        let (blob, data, options) = (blob.to_owned(), gather(&body), options.clone());
        let put = move |service: &mut Service| service.put(&blob, data.clone(), &options);
        match body.is_empty() {
            true => self.call(Op::Put, put).await,
            false => self.storing(Op::Put, put).await,
        }
    }

    async fn stage(&self, blob: &str, id: &BlockId, body: Body, options: &StageOptions<'_>) -> Result<()> {
        let (blob, id, data) = (blob.to_owned(), id.clone(), gather(&body));
        let (lease, scope) = given(options);
        self.storing(Op::Stage, move |service| {
            service.bytes_in += data.len() as u64;
            service.stage(&blob, &id, data.clone(), lease.as_deref(), &scope)
        })
        .await
    }

    async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
        options: &StageOptions<'_>,
    ) -> Result<()> {
        let (blob, id, source) = (blob.to_owned(), id.clone(), source.to_owned());
        let source_etag = source_etag.cloned();
        let (lease, scope) = given(options);
        self.storing(Op::StageFrom, move |service| {
            let data = service.source(&source, &range, source_etag.as_ref())?;
            service.stage(&blob, &id, data, lease.as_deref(), &scope)
        })
        .await
    }

    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        let (blob, blocks, options) = (blob.to_owned(), blocks.to_vec(), options.clone());
        self.storing(Op::Commit, move |service| {
            service.commit(&blob, &blocks, &options)
        })
        .await
    }

    async fn block_list(&self, blob: &str) -> Result<BlockList> {
        let blob = blob.to_owned();
        self.call(Op::BlockList, move |service| service.block_list(&blob))
            .await
    }

    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written> {
        let (blob, metadata, condition) = (blob.to_owned(), metadata.clone(), condition.clone());
        self.call(Op::SetMetadata, move |service| {
            service.set_metadata(&blob, &metadata, &condition)
        })
        .await
    }

    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        self.settled().await;
        let (blob, condition) = (blob.to_owned(), condition.clone());
        self.call(Op::Delete, move |service| service.delete(&blob, &condition))
            .await
    }

    async fn wait_for_lost(&self, _blob: &str) -> Result<()> {
        self.settled().await;
        Ok(())
    }

    async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        stored: Option<&StoredHeaders>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        let (source, source_etag) = (source.to_owned(), source_etag.cloned());
        let stored = stored.cloned();
        let (target, metadata, condition) = (target.to_owned(), metadata.cloned(), condition.clone());
        self.storing(Op::Copy, move |service| {
            service.copy(
                (&source, source_etag.as_ref(), stored.as_ref()),
                &target,
                metadata.as_ref(),
                &condition,
            )
        })
        .await
    }

    async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        let options = options.clone();
        self.call(Op::List, move |service| Ok(service.list(&options)))
            .await
    }

    async fn acquire_lease(&self, blob: &str, _seconds: u32) -> Result<String> {
        let blob = blob.to_owned();
        self.call(Op::AcquireLease, move |service| service.acquire_lease(&blob))
            .await
    }

    async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        let blob = blob.to_owned();
        let condition = Condition {
            lease: Some(lease.to_owned()),
            ..Condition::none()
        };
        self.call(Op::RenewLease, move |service| {
            service.find(&blob)?;
            service.check_lease(&blob, &condition)
        })
        .await
    }

    async fn container_state(&self) -> Result<ContainerState> {
        self.call(Op::ContainerMetadata, |service| {
            Ok(ContainerState {
                metadata: service.container_metadata.clone(),
                keeps_blobs: service.keeps_blobs,
            })
        })
        .await
    }

    async fn set_container_metadata(&self, metadata: &Metadata, lease: Option<&str>) -> Result<()> {
        let (metadata, lease) = (metadata.clone(), lease.map(str::to_owned));
        self.call(Op::SetContainerMetadata, move |service| {
            // A lease guards the container's deletion; an id given elsewhere must match.
            if lease.is_some() && lease != service.container_lease {
                return Err(refusal(412, "LeaseIdMismatchWithContainerOperation"));
            }
            service.container_metadata = metadata.clone();
            Ok(())
        })
        .await
    }

    async fn acquire_container_lease(&self, _seconds: u32) -> Result<String> {
        self.call(Op::AcquireLease, |service| service.acquire_container_lease())
            .await
    }

    async fn release_container_lease(&self, lease: &str) -> Result<()> {
        let lease = lease.to_owned();
        self.call(Op::RenewLease, move |service| {
            if service.container_lease.as_ref() != Some(&lease) {
                return Err(refusal(409, "LeaseIdMismatchWithLeaseOperation"));
            }
            service.container_lease = None;
            Ok(())
        })
        .await
    }

    fn now(&self) -> SystemTime {
        self.lock().service.now()
    }
    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

/// Lease and encryption scope of a block.
fn given(options: &StageOptions<'_>) -> (Option<String>, Option<String>) {
    let scope = options.stored.and_then(StoredHeaders::scope);
    (options.lease.map(str::to_owned), scope.map(str::to_owned))
}
