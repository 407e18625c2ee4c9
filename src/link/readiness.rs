//! Sockets that the JavaScript thread reads itself.
//!
//! A frame that tokio reads costs two wake-ups of a sleeping thread: tokio's by the kernel, and
//! JavaScript's by tokio. On an event loop that can watch a descriptor, the second thread is the
//! one the kernel wakes. It watches one descriptor per node, an epoll set of all its links, so that
//! links come and go without touching the event loop.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Links answered by one look; the rest stays ready for the next.
pub const BATCH: usize = 64;

/// The sockets of one node's links, by the links' numbers.
#[derive(Debug)]
pub struct Readiness {
    epoll: File,
}

impl Readiness {
    /// An empty set.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 has no memory effects.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns; `File` only closes it.
        let epoll = unsafe { File::from_raw_fd(epoll) };
        Ok(Self { epoll })
    }

    /// What the event loop watches: readable while any socket is.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Watches a link's socket until it is removed.
    ///
    /// # Errors
    /// The kernel's limits on watches.
    pub fn add(&self, link: u32, socket: &TcpStream) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLRDHUP) as u32,
            u64: u64::from(link),
        };
        self.control(libc::EPOLL_CTL_ADD, socket, &raw mut event)
    }

    /// Watches a link's socket no longer. A socket that failed stays readable for ever, so this
    /// comes with the failure and not with the end of its task.
    pub fn remove(&self, socket: &TcpStream) {
        // It can only fail where the socket is not in the set, which is what is asked for.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket, std::ptr::null_mut());
    }

    fn control(
        &self,
        operation: libc::c_int,
        socket: &TcpStream,
        event: *mut libc::epoll_event,
    ) -> io::Result<()> {
        let (epoll, socket) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: both descriptors are open; `event` is valid for the call, or null for DEL.
        let done = unsafe { libc::epoll_ctl(epoll, operation, socket, event) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Links that have something to read now, [`BATCH`] at most.
    #[must_use]
    pub fn ready(&self) -> Vec<u32> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let (epoll, room) = (self.epoll.as_raw_fd(), BATCH as libc::c_int);
        // SAFETY: the array has room for as many events; a timeout of 0 never blocks.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, 0) };
        // Negative: interrupted. The set stays readable, so the event loop comes back.
        let count = usize::try_from(count).unwrap_or(0);
        events[..count]
            .iter()
            .map(|event| event.u64 as u32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_socket_is_ready_while_it_has_bytes_or_has_ended_until_it_is_removed() {
        let set = Readiness::new().unwrap();
        let (near, mut far) = pair();
        set.add(7, &near).unwrap();
        assert!(set.ready().is_empty());
        far.write_all(b"x").unwrap();
        // Waits until it is here.
        assert_eq!(near.peek(&mut [0]).unwrap(), 1);
        assert_eq!(set.ready(), [7]);
        // Level-triggered: nobody has read it.
        assert_eq!(set.ready(), [7]);
        drop(far);
        (&near).read_exact(&mut [0]).unwrap();
        assert_eq!(near.peek(&mut [0]).unwrap(), 0);
        assert_eq!(set.ready(), [7]);
        set.remove(&near);
        set.remove(&near);
        assert!(set.ready().is_empty());
    }
}
