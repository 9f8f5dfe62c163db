//! What stands before a service, and may be shut.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use e2e::harness::{PATIENCE, runtime, wait_for};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Whether connections come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// They do.
    Open,
    /// Nobody listens.
    Refused,
    /// They are taken, and nothing comes through.
    Silent,
}

/// A gate before a service. Each setting ends the connections that there are, or silences them.
#[derive(Debug)]
pub(crate) struct Gate {
    address: SocketAddr,
    passage: watch::Sender<Passage>,
}

impl Gate {
    /// An open one.
    pub(crate) fn before(service: SocketAddr) -> Result<Self> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime()
            .block_on(TcpListener::bind(anywhere))
            .context("a gate")?;
        let address = listener.local_addr()?;
        let (passage, watched) = watch::channel(Passage::Open);
        runtime().spawn(guard(listener, address, service, watched));
        Ok(Self { address, passage })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens or shuts it; returns when that is so.
    pub(crate) fn set(&self, passage: Passage) {
        let _ = self.passage.send(passage);
        let wanted = passage != Passage::Refused;
        let _ = wait_for("the gate", PATIENCE, || {
            Ok((std::net::TcpStream::connect(self.address).is_ok() == wanted).then_some(()))
        });
    }
}

async fn guard(
    listener: TcpListener,
    address: SocketAddr,
    service: SocketAddr,
    mut passage: watch::Receiver<Passage>,
) {
    let mut listener = Some(listener);
    loop {
        let now = *passage.borrow_and_update();
        let Some(open) = listener.as_ref().filter(|_| now != Passage::Refused) else {
            listener = None;
            if now == Passage::Refused {
                if passage.changed().await.is_err() {
                    return;
                }
            } else {
                // Somebody else may have the port for a moment.
                listener = TcpListener::bind(address).await.ok();
                tokio::task::yield_now().await;
            }
            continue;
        };
        tokio::select! {
            changed = passage.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            taken = open.accept() => {
                if let Ok((client, _)) = taken {
                    tokio::spawn(pass(client, service, now, passage.clone()));
                }
            }
        }
    }
}

/// One connection. Nothing is passed on any more once the gate was set anew.
async fn pass(
    mut client: TcpStream,
    service: SocketAddr,
    now: Passage,
    mut passage: watch::Receiver<Passage>,
) {
    if now == Passage::Silent {
        let _ = passage.changed().await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(service).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => return,
        _ = passage.changed() => {}
    }
    if *passage.borrow() == Passage::Silent {
        // Both ends are held.
        let _ = passage.changed().await;
    }
}
