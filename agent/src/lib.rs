//! Snowfence
