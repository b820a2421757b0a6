//! The client programs that show and use the kit.
#![forbid(unsafe_code)]

pub mod httpd;
