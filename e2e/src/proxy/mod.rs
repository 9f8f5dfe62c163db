//! A relay over TLS in front of a blob service, which does what networks, proxies and services do wrong, on
//! command: to each connection, to each request, or to some of them.
//!
//! It takes HTTP/1.1 apart itself, because most of what it does no HTTP library would: answers that break
//! off, heads of which half is there, lengths that lie. What reaches the service behind it is executed there
//! as it came.

mod certificate;
mod fault;
mod mangle;
mod serve;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub use self::certificate::Certificates;
pub use self::fault::{Canned, Fault, Only, Rule, When};
pub use self::state::Counters;

use self::state::State;
use crate::vsp::Backend;

/// Relays until it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    state: Arc<State>,
    runtime: Handle,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Listens on a free port of loopback, in front of a service. Without a fault at first.
    pub fn start(
        runtime: &Handle,
        backend: Arc<dyn Backend>,
        certificates: &Certificates,
    ) -> io::Result<Self> {
        let _inside = runtime.enter();
        // Bound for as long as the proxy lives, and never listening: nobody else gets the port meanwhile.
        let holder = TcpSocket::new_v4()?;
        holder.set_reuseaddr(true)?;
        holder.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let addr = holder.local_addr()?;
        let listener = serve::listen(addr)?;
        let state = Arc::new(State::new(backend, certificates));
        let accepting = runtime.spawn(serve::accept(holder, listener, addr, Arc::clone(&state)));
        Ok(Self {
            addr,
            state,
            runtime: runtime.clone(),
            accepting,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on this goes wrong, and nothing else. One that concerns connections ends those there are.
    pub fn set(&self, rule: Rule) {
        self.state.set(Some(rule));
    }

    /// Nothing goes wrong any more. Whoever still waits for an answer that will not come is told by a reset;
    /// what was to be executed late has been executed when this returns. Not for callers inside of a runtime.
    pub fn heal(&self) {
        self.state.set(None);
        let late = self.state.late();
        self.runtime.block_on(async {
            for task in late {
                // One that panicked has been told of.
                let _ = task.await;
            }
        });
    }

    /// Resets the connections there are; new ones are taken.
    pub fn cut(&self) {
        self.state.cut();
    }

    /// What it has seen so far.
    pub fn counters(&self) -> Counters {
        self.state.counters()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
