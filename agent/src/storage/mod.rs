//! Object stores (S3, Azure, Google Cloud Storage, a folder): the HTTP that the `object_store` crate speaks, over connections of
//! the agent's own making.

mod bucket;
mod carrier;

pub use bucket::{Bucket, BucketError, in_time};
pub use carrier::{Carrier, Said, innermost, retry};
