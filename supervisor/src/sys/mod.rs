//! Thin wrappers for what no crate offers: one function a system call or operation, errors as [`Errno`].
//!
//! # Safety
//!
//! This folder may use `unsafe`: every block is one raw system call whose pointers come from live Rust references of
//! the right length, or whose arguments are plain numbers. Addresses in other processes are numbers here and are never
//! dereferenced.
//!
//! [`Errno`]: nix::errno::Errno

#![allow(unsafe_code, reason = "raw system calls that no crate wraps")]

pub mod bpf;
pub mod command;
pub mod file;

pub mod guard;
pub mod io_uring;
pub mod landlock;
pub mod message;
pub mod message_queue;
pub mod netfilter;
pub mod pagemap;
pub mod process;
pub mod ptrace;
pub mod schedule;
pub mod shared_memory;
pub mod sock_diag;
pub mod socket;
pub mod terminal;
pub mod watch;
