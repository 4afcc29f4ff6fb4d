//! Listening sockets that outlive the process which serves them.
//!
//! A parent binds them and keeps them open. Each child that serves them gets them over its standard input, a socket of
//! its own. While there is no child, who connects waits instead of being refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::server::bind;

/// The most sockets that one line carries.
const MOST: usize = 8;
/// The most bytes of their addresses.
const TEXT: usize = 4096;

/// Sockets that a parent keeps.
#[derive(Debug, Default)]
pub struct Kept(Vec<(String, TcpListener)>);

impl Kept {
    /// Binds addresses as [`crate::Listener::bind`] does. One that cannot be bound is left to the child, whose error
    /// text tells.
    pub async fn bind(addresses: impl IntoIterator<Item = &str>) -> Self {
        let mut kept = Vec::new();
        for address in addresses.into_iter().take(MOST) {
            if let Ok(socket) = bind(address).await.and_then(tokio::net::TcpListener::into_std) {
                kept.push((address.to_owned(), socket));
            }
        }
        Self(kept)
    }

    /// A standard input for a child, with the sockets in it.
    ///
    /// # Errors
    /// Of the system.
    pub fn line(&self) -> io::Result<OwnedFd> {
        let (near, far) = UnixStream::pair()?;
        let names: Vec<&str> = self.0.iter().map(|(address, _)| address.as_str()).collect();
        // A line always has text, and one without sockets too.
        let text = format!("{}\n", names.join("\n"));
        let sockets: Vec<BorrowedFd<'_>> = self.0.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut carried = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !carried.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("too many sockets for one line"));
        }
        sendmsg(
            &near,
            &[IoSlice::new(text.as_bytes())],
            &mut carried,
            SendFlags::NOSIGNAL,
        )?;
        Ok(far.into())
    }
}

/// What a parent gave this process.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, TcpListener)>);

impl Inherited {
    /// Reads the line from the parent.
    ///
    /// # Errors
    /// The line cannot be read: it is no socket, or of another version.
    pub fn from_line(line: impl AsFd) -> io::Result<Self> {
        let mut text = [0; TEXT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut carried = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let read = recvmsg(line, &mut [IoSliceMut::new(&mut text)], &mut carried, flags)?.bytes;
        let sockets = carried.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets: Vec<OwnedFd> = sockets.flatten().collect();
        let names = std::str::from_utf8(text.get(..read).unwrap_or_default()).map_err(io::Error::other)?;
        let names = names.lines().filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Self(names.zip(sockets.into_iter().map(TcpListener::from)).collect()))
    }

    /// The socket of an address, if the parent has it.
    pub(crate) fn take(&mut self, address: &str) -> Option<TcpListener> {
        let at = self.0.iter().position(|(name, _)| name == address)?;
        Some(self.0.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;
    use crate::Listener;

    #[tokio::test]
    async fn who_connects_while_there_is_no_child_is_served_by_the_next() {
        let kept = Kept::bind(["127.0.0.1:0"]).await;
        let address = kept.0[0].1.local_addr().unwrap();
        for _ in 0..2 {
            let mut waiting = TcpStream::connect(address).unwrap();
            waiting.write_all(b"x").unwrap();
            let mut inherited = Inherited::from_line(kept.line().unwrap()).unwrap();
            let listener = Listener::bind_or_inherit("127.0.0.1:0", "test", "--test", &mut inherited)
                .await
                .unwrap();
            assert_eq!(listener.address(), address);
            let (mut served, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut served, b"y").await.unwrap();
            let mut answer = [0];
            waiting.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"y");
        }
    }

    #[tokio::test]
    async fn an_address_that_the_parent_could_not_bind_is_the_childs_to_report() {
        let taken = Listener::bind("127.0.0.1:0", "test", "--test").await.unwrap();
        let address = taken.address().to_string();
        let kept = Kept::bind([address.as_str()]).await;
        let mut inherited = Inherited::from_line(kept.line().unwrap()).unwrap();
        let error = Listener::bind_or_inherit(&address, "test", "--test", &mut inherited)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the port is in use"), "{error}");
    }

    #[test]
    fn a_standard_input_that_is_no_line_is_an_error() {
        assert!(Inherited::from_line(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
