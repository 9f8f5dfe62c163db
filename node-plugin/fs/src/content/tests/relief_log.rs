//! What the log says of files that cannot be sent to make room.

use std::sync::Mutex;

use super::*;
use crate::content::state::Relieving;
use crate::store::fake::{Fault, Op};

/// What was written to the log.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Trouble that is over is not the next one: each is said once.
#[tokio::test(start_paused = true)]
async fn the_next_time_that_nothing_can_be_sent_is_said_again() {
    let text = Text::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _log = tracing::subscriber::set_default(subscriber);
    let said = || {
        let text = String::from_utf8(text.0.lock().unwrap().clone()).unwrap();
        text.matches("dirty data cannot be sent").count()
    };
    let world = World::new(512 << 20, tiny());
    let file = world.create();
    let relieve = async || {
        world.env.budget.relieve(1, None);
        while matches!(file.core.lock().relieving, Relieving::UnderWay { .. }) {
            tokio::task::yield_now().await;
        }
    };
    let refused = || {
        world
            .store
            .fail(Op::Put, Fault::Status(403, "AuthorizationFailure"), u64::MAX)
    };
    refused();
    file.write(0, b"a").await.unwrap();
    relieve().await;
    tokio::time::advance(world.env.patience.again()).await;
    relieve().await;
    assert_eq!(said(), 1, "each try of the same trouble was said");
    world.store.heal();
    commit(&file).await.unwrap();
    relieve().await;
    refused();
    file.write(1, b"b").await.unwrap();
    relieve().await;
    assert_eq!(said(), 2, "the next trouble was not said");
}
