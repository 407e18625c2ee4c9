//! The same tests with the links read as the JavaScript thread reads them: by whoever is woken when
//! a node's set of sockets becomes readable.
#![cfg(target_os = "linux")]

#[path = "link_tcp.rs"]
mod link_tcp;
