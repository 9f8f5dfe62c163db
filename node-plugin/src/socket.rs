//! A unix socket of one's own at a path: private to root, bound anew when somebody took it away, and removed
//! only by the process that bound it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as Listener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::Stream;

/// The socket.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// The file that was bound, open so that no other one gets its number; `None` once it was given up.
    own: Mutex<Option<File>>,
    rebound: UnboundedSender<Listener>,
}

impl Socket {
    /// Binds a socket, replacing one that a former process left behind; and the connections to it. Call it
    /// inside the runtime.
    ///
    /// # Errors
    /// Something that is no socket is at the path, or it cannot be bound.
    pub fn bind(path: &Path) -> anyhow::Result<(Arc<Self>, Incoming)> {
        let (listener, own) = bind(path)?;
        let listener =
            UnixListener::from_std(listener).with_context(|| format!("listening at {}", path.display()))?;
        let (rebound, replaced) = unbounded_channel();
        let socket = Self {
            path: path.to_owned(),
            own: Mutex::new(Some(own)),
            rebound,
        };
        Ok((Arc::new(socket), Incoming { listener, replaced }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Binds it anew when something else is at its path, or nothing; whether that was so. Connections that
    /// there are go on.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn look(&self) -> anyhow::Result<bool> {
        self.look_and(|| ())
    }

    /// The same; `first` is done before it is bound anew.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn look_and(&self, first: impl FnOnce()) -> anyhow::Result<bool> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.as_ref().is_none_or(|own| is_at(own, &self.path)) {
            return Ok(false);
        }
        first();
        let (listener, bound) = bind(&self.path)?;
        *own = Some(bound);
        // Nobody serves any more: it ends as well, then.
        let _ = self.rebound.send(listener);
        tracing::warn!(socket = %self.path.display(), "the socket was taken away; bound anew");
        Ok(true)
    }

    /// Gives it up: it is removed, unless what is at its path is somebody else's, and never bound anew. While
    /// somebody looks (at a disk that hangs, say) it stays: nobody waits for that who has to end.
    pub fn give_up(&self) {
        let own = match self.own.try_lock() {
            Ok(mut own) => own.take(),
            Err(TryLockError::Poisoned(own)) => own.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(own) = own
            && is_at(&own, &self.path)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// Connections to a [`Socket`], also after it was bound anew.
#[derive(Debug)]
pub struct Incoming {
    listener: UnixListener,
    replaced: UnboundedReceiver<Listener>,
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(Some(listener)) = self.replaced.poll_recv(context) {
            match UnixListener::from_std(listener) {
                Ok(listener) => self.listener = listener,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let accepted = self.listener.poll_accept(context);
        accepted.map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

fn bind(path: &Path) -> anyhow::Result<(Listener, File)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path)
                .with_context(|| format!("removing the old socket {}", path.display()))?;
        }
        Ok(_) => bail!(
            "{} exists and is no socket; remove it or name another path",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let binding = || format!("binding {}", path.display());
    let listener = Listener::bind(path).with_context(binding)?;
    listener.set_nonblocking(true).with_context(binding)?;
    let own = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| format!("looking at {}", path.display()))?;
    // Requests carry secrets, answers mount file systems: root only.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("permissions of {}", path.display()))?;
    Ok((listener, own))
}

/// Whether the file is what is at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let at = std::fs::symlink_metadata(path).map(|at| (at.dev(), at.ino()));
    let own = file.metadata().map(|own| (own.dev(), own.ino()));
    matches!((at, own), (Ok(at), Ok(own)) if at == own)
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/csi.sock");
        drop(Socket::bind(&path).unwrap());
        let _bound = Socket::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(Socket::bind(&file).unwrap_err().to_string().contains("no socket"));
    }

    #[tokio::test]
    async fn a_socket_that_vanished_or_was_replaced_is_bound_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sockets/csi.sock");
        let (socket, mut incoming) = Socket::bind(&path).unwrap();
        let before = UnixStream::connect(&path).await.unwrap();
        let _served = incoming.next().await.unwrap().unwrap();
        assert!(!socket.look().unwrap());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(socket.look().unwrap());
        let _client = UnixStream::connect(&path).await.unwrap();
        let _served_too = incoming.next().await.unwrap().unwrap();
        // The first connection goes on.
        before.writable().await.unwrap();
        assert!(before.try_write(b"x").is_ok());
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(socket.look().unwrap());
        let _client = UnixStream::connect(&path).await.unwrap();
        incoming.next().await.unwrap().unwrap();
        // At the end it goes, and does not come again.
        socket.give_up();
        assert!(!path.exists());
        assert!(!socket.look().unwrap() && !path.exists());
    }

    #[tokio::test]
    async fn the_socket_of_another_process_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let (socket, incoming) = Socket::bind(&path).unwrap();
        // Not served any more: no reason for its number to be had by the next one.
        drop(incoming);
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        socket.give_up();
        assert!(path.exists());
    }
}
