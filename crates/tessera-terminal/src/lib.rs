//! What people type and read: the commands of `tessera` that are neither service nor agent.

pub mod run;
