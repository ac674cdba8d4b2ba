#![no_std]
//! stub
pub mod protocol;
