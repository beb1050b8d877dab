//! Snowfence: a host network agent that captures, decides on and records every Snowflake statement.
//!
//! One folder a concern, each knowing only those below it: `cli`, then `reconcile`, then `proxy`, then `snowflake`, `policy`,
//! `identity`, then `sql`, `audit`, `capture`, then `storage`, `tls`, then `config`. [`app`] wires them together.

pub mod admin;
pub mod app;
pub mod audit;
pub mod capture;
pub mod cli;
pub mod config;
pub mod identity;
pub mod kubernetes;
pub mod policy;
pub mod proxy;
pub mod reconcile;
pub mod replay;
pub mod snowflake;
pub mod sql;
pub mod storage;
pub mod tls;
pub mod wire;
