//! What the channel's device keeps of requests that were given up, charged to the volume that sent them.

use std::any::Any;
use std::sync::{Arc, Weak};

use vsc_driver::channel::Ledger;

use super::ledger::{Budget, Kind};
use super::permit::Permit;
use super::share::Share;

/// A volume's books of it, which do not keep the volume.
#[derive(Debug)]
pub(crate) struct Losses {
    budget: Arc<Budget>,
    share: Weak<Share>,
}

impl Losses {
    pub(crate) fn of(share: &Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            budget: Arc::clone(&share.budget),
            share: Arc::downgrade(share),
        })
    }
}

impl Ledger for Losses {
    fn lost(&self, bytes: usize) -> Box<dyn Any + Send> {
        // Of a volume that has ended meanwhile it is the process's.
        let share = self.share.upgrade();
        Box::new(self.budget.lose(bytes, share.as_ref()))
    }
}

impl Budget {
    /// Charges what was lost. Nobody asks whether there is room; cached data makes some.
    fn lose(self: &Arc<Self>, bytes: usize, share: Option<&Arc<Share>>) -> Permit {
        let own = share.map(|share| &*share.own);
        self.lock().add(Kind::Lost, bytes, own);
        let permit = self.permit(Kind::Lost, bytes, share);
        self.shrink();
        permit
    }
}
