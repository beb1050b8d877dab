//! File transfers: the answer to a `PUT` or a `GET` says where the stage's files lie in the storage behind Snowflake, with
//! credentials for it, and which local files the driver is to read or write. The client is told of a stage at the
//! account's own host instead, in the form of one on Google's storage, which every driver takes from any host.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::json::{Malformed, Object};
use super::reply::is_empty;

/// What leads to the stage, in `data`, as Snowflake spells it; `uploadInfo` is an older copy of `stageInfo`.
pub const KEYS: [&str; 4] = [STAGE, OLD_STAGE, MATERIAL, ADDRESSES];
const STAGE: &str = "stageInfo";
const OLD_STAGE: &str = "uploadInfo";
/// The key of the client's own encryption of a file. It is the client's to have: without the file it opens nothing.
const MATERIAL: &str = "encryptionMaterial";
const ADDRESSES: &str = "presignedUrls";

/// The path below which the client finds the files of a stage: the first part is what it takes for a bucket.
pub const PATH: &str = "/snowfence/files/";
const LOCATION: &str = "snowfence/files/";
/// A longer name is neither one that a storage takes nor one that was given out.
const LONGEST_NAME: usize = 16 * 1024;
/// Files of one `GET`.
const MOST_FILES: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(
        "the stage lies on storage of the kind {0}, which Snowfence does not relay: use a stage on S3, Azure or Google Cloud Storage"
    )]
    Storage(String),
    #[error(
        "the stage on Google Cloud Storage comes without an access token, which Snowfence does not relay"
    )]
    Presigned,
    #[error("Snowflake's answer names other local files than the statement")]
    OtherFiles,
    #[error("Snowflake's answer names a file outside of the stage")]
    Outside,
    #[error("there are more than {MOST_FILES} files: name fewer, by a path or a pattern")]
    TooMany,
    #[error("the system gives no random numbers")]
    Sealing,
}

/// The way that the files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    Upload,
    Download,
}

/// Where the files of a stage lie, and how to get at them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Stage {
    pub storage: Storage,
    /// The bucket or container.
    pub container: String,
    /// What the names of all its files begin with: empty, or with a slash at the end.
    pub prefix: String,
}

/// A provider's storage, with the credential that Snowflake gave for it.
#[derive(Clone, Serialize, Deserialize)]
pub enum Storage {
    S3 { endpoint: String, region: String, key: String, secret: Zeroizing<String>, token: Zeroizing<String> },
    Azure { endpoint: String, account: String, signature: Zeroizing<String> },
    Gcs { endpoint: String, token: Zeroizing<String> },
}

/// The answer to a `PUT` or a `GET`.
#[derive(Debug)]
pub struct Transfer {
    body: Object,
    data: Object,
    /// Whether the client encrypts, and decrypts, the files.
    encrypted: bool,
    pub direction: Direction,
    pub stage: Stage,
    /// Of a download: the files' names below the stage's prefix. Of an upload: the file's, where the statement says no
    /// more of it, not even a folder.
    pub names: Vec<String>,
    /// Of an upload: whether it may write over a file of the same name.
    pub overwrites: bool,
}

impl Transfer {
    /// Whether there is the way to a stage in an answer's `data`.
    pub fn is_in(data: &Object) -> bool {
        KEYS.iter().any(|key| data.raw(key).is_some_and(|value| !is_empty(value.get())))
    }

    /// Reads an answer. `local` is what the statement says of local files; the answer must say the same, as the driver
    /// goes by that.
    pub fn parse(bytes: &[u8], local: &str) -> Result<Self, TransferError> {
        let body = Object::parse(bytes)?;
        let data = body.object("data")?;
        let info = data.object(STAGE)?;
        let (stage, encrypted) = (Stage::parse(&info)?, info.field("isClientSideEncrypted").unwrap_or(true));
        let sources: Vec<String> = data.field("src_locations").ok_or(Malformed::Field("src_locations"))?;
        let command: String = data.field("command").ok_or(Malformed::Field("command"))?;
        let (direction, names) = match command.to_ascii_uppercase().as_str() {
            "UPLOAD" if sources.iter().all(|source| same_place(source, local)) => {
                (Direction::Upload, sources.into_iter().filter(|source| is_bare_name(source)).collect())
            }
            "DOWNLOAD" => {
                let folder: String = data.field("localLocation").ok_or(Malformed::Field("localLocation"))?;
                if !same_place(&folder, local) {
                    return Err(TransferError::OtherFiles);
                }
                (Direction::Download, sources)
            }
            "UPLOAD" => return Err(TransferError::OtherFiles),
            _ => return Err(Malformed::Field("command").into()),
        };
        if names.len() > MOST_FILES {
            return Err(TransferError::TooMany);
        }
        if !names.iter().all(|name| is_inside(name)) {
            return Err(TransferError::Outside);
        }
        let overwrites = data.field("overwrite").unwrap_or(false);
        Ok(Self { body, data, encrypted, direction, stage, names, overwrites })
    }

    /// The answer for the client: for an upload, with a token that is good for this stage, or with the file's address;
    /// for a download, with an address for each of the files.
    pub fn for_client(mut self, account: &str, access: &Access) -> Vec<u8> {
        let credential = match access {
            Access::Token(token) => json!({ "GCS_ACCESS_TOKEN": token }),
            Access::Address(_) | Access::Addresses(_) => json!({}),
        };
        let of = |name: &String| format!("https://{account}{PATH}{name}");
        let address = if let Access::Address(Some(name)) = access { Some(of(name)) } else { None };
        let stage = json!({
            "locationType": "GCS",
            "location": LOCATION,
            "path": "",
            "region": "",
            "storageAccount": null,
            "endPoint": account,
            "isClientSideEncrypted": self.encrypted,
            "useS3RegionalUrl": false,
            "useRegionalUrl": false,
            "useVirtualUrl": false,
            "presignedUrl": address,
            "creds": credential,
        });
        for key in [STAGE, OLD_STAGE] {
            if key == STAGE || self.data.raw(key).is_some_and(|value| !is_empty(value.get())) {
                self.data.set(key, &stage);
            }
        }
        match access {
            Access::Token(_) | Access::Address(_) => self.data.retain(|key| key != ADDRESSES),
            Access::Addresses(names) => {
                self.data.set(ADDRESSES, &names.iter().map(of).collect::<Vec<_>>());
            }
        }
        self.body.set("data", &self.data);
        self.body.to_vec()
    }
}

/// What lets the client move the files.
pub enum Access {
    Token(String),
    /// For the one file of an upload; none as long as the statement does not say its name alone.
    Address(Option<String>),
    Addresses(Vec<String>),
}

impl Access {
    /// Whether a client wants an address for each file that it uploads: with a token, JDBC speaks another protocol, that
    /// of Google's own library. Without one it runs the `PUT` again for each file, by its name on the stage alone, as
    /// Snowflake then answers with the address of that file.
    pub fn is_by_address(user_agent: &str) -> bool {
        user_agent.starts_with("JDBC/")
    }
}

impl Stage {
    fn parse(info: &Object) -> Result<Self, TransferError> {
        let text = |key: &str| info.field::<String>(key).unwrap_or_default();
        let credentials = info.object("creds")?;
        let credential = |keys: &[&str], name| -> Result<String, Malformed> {
            let value = keys.iter().find_map(|key| credentials.field::<String>(key));
            value.filter(|value| !value.is_empty()).ok_or(Malformed::Field(name))
        };
        let (container, prefix) = match text("location").split_once('/') {
            Some((container, prefix)) => (container.to_owned(), prefix.to_owned()),
            None => (text("location"), String::new()),
        };
        if !is_host_part(&container) {
            return Err(Malformed::Field("location").into());
        }
        let prefix = if prefix.is_empty() || prefix.ends_with('/') { prefix } else { format!("{prefix}/") };
        let (region, endpoint) = (text("region"), endpoint(&text("endPoint"))?);
        if !region.is_empty() && !is_host_part(&region) {
            return Err(Malformed::Field("region").into());
        }
        let storage = match text("locationType").to_ascii_uppercase().as_str() {
            "S3" => Storage::S3 {
                endpoint: format!("https://{container}.{}", endpoint.unwrap_or_else(|| s3_host(&region))),
                region,
                key: credential(&["AWS_KEY_ID", "AWS_ID"], "AWS_KEY_ID")?,
                secret: credential(&["AWS_SECRET_KEY", "AWS_KEY"], "AWS_SECRET_KEY")?.into(),
                token: credential(&["AWS_TOKEN"], "AWS_TOKEN")?.into(),
            },
            "AZURE" => {
                let account = text("storageAccount");
                if !is_host_part(&account) {
                    return Err(Malformed::Field("storageAccount").into());
                }
                let host = endpoint.unwrap_or_else(|| "core.windows.net".to_owned());
                let host = host.strip_prefix("blob.").unwrap_or(&host);
                Storage::Azure {
                    endpoint: format!("https://{account}.blob.{host}"),
                    account,
                    signature: credential(&["AZURE_SAS_TOKEN"], "AZURE_SAS_TOKEN")?.into(),
                }
            }
            "GCS" => {
                let regional = info.field::<bool>("useRegionalUrl").unwrap_or(false)
                    || region.eq_ignore_ascii_case("me-central2");
                let host = match endpoint {
                    Some(endpoint) => endpoint,
                    None if regional => format!("storage.{}.rep.googleapis.com", region.to_lowercase()),
                    None => "storage.googleapis.com".to_owned(),
                };
                let token =
                    credential(&["GCS_ACCESS_TOKEN"], "").map_err(|_| TransferError::Presigned)?.into();
                Storage::Gcs { endpoint: format!("https://{host}"), token }
            }
            other => {
                let known = other.chars().take(40).filter(|it| it.is_ascii_alphanumeric() || *it == '_');
                return Err(TransferError::Storage(known.collect()));
            }
        };
        Ok(Self { storage, container, prefix })
    }
}

impl fmt::Display for Stage {
    /// Where it is, without the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match &self.storage {
            Storage::S3 { .. } => "s3",
            Storage::Azure { .. } => "azure",
            Storage::Gcs { .. } => "gs",
        };
        write!(f, "{scheme}://{}/{}", self.container, self.prefix)
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stage({self})")
    }
}

/// The name of a file to upload, or to ask for, below the client's stage: one part of a path, percent-encoded or not.
pub fn file_name(path: &str) -> Option<String> {
    // One driver encodes the slash behind its bucket too.
    let rest = path.strip_prefix("/snowfence/files")?;
    let decoded = percent_encoding::percent_decode_str(rest).decode_utf8().ok()?;
    let name = decoded.strip_prefix('/')?;
    let valid = name.len() <= LONGEST_NAME && !name.contains('/') && is_inside(name);
    valid.then(|| name.to_owned())
}

/// Whether a name below a stage stays there.
fn is_inside(name: &str) -> bool {
    let name = name.strip_prefix('/').unwrap_or(name);
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    name.split('/').all(is_part)
}

/// Whether it names one file, and no folder.
fn is_bare_name(source: &str) -> bool {
    !source.contains(['/', '\\', '*', '?']) && is_inside(source)
}

/// Whether two spellings name the same local files: with or without the scheme, a slash at the end, and either slash.
fn same_place(one: &str, other: &str) -> bool {
    let plain = |place: &str| {
        let place = place.replace('\\', "/");
        let place = match place.get(..7) {
            Some(scheme) if scheme.eq_ignore_ascii_case("file://") => place.get(7..).unwrap_or_default(),
            _ => &place,
        };
        match place.trim_end_matches('/') {
            "" => place.to_owned(),
            trimmed => trimmed.to_owned(),
        }
    };
    plain(one) == plain(other)
}

/// The host that an answer wants the storage to be asked at, if it names one.
fn endpoint(given: &str) -> Result<Option<String>, Malformed> {
    let host = given.strip_prefix("https://").unwrap_or(given).trim_end_matches('/');
    match host {
        "" | "null" => Ok(None),
        host if host.split('.').all(is_host_part) => Ok(Some(host.to_ascii_lowercase())),
        _ => Err(Malformed::Field("endPoint")),
    }
}

fn s3_host(region: &str) -> String {
    let top = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    if region.is_empty() { format!("s3.{top}") } else { format!("s3.{region}.{top}") }
}

fn is_host_part(part: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'$');
    !part.is_empty() && part.len() <= 255 && part.bytes().all(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(data: &str) -> Vec<u8> {
        format!(r#"{{"data":{data},"code":null,"message":null,"success":true}}"#).into_bytes()
    }

    const UPLOAD: &str = r#"{"command":"UPLOAD","src_locations":["/tmp/a*.csv"],"parallel":4,"encryptionMaterial":{"queryStageMasterKey":"M","queryId":"q","smkId":92019681909886123456},"stageInfo":{"locationType":"S3","location":"bucket/stages/x/","path":"stages/x/","region":"eu-west-1","storageAccount":null,"endPoint":null,"isClientSideEncrypted":true,"creds":{"AWS_KEY_ID":"S1","AWS_SECRET_KEY":"S2","AWS_TOKEN":"T3"}},"uploadInfo":{"creds":{"AWS_KEY_ID":"S1"}},"presignedUrls":["S4"]}"#;

    #[test]
    fn an_upload_is_told_of_the_account_alone() {
        let transfer = Transfer::parse(&answer(UPLOAD), "file:///tmp/a*.csv").unwrap();
        assert_eq!(transfer.direction, Direction::Upload);
        assert_eq!(transfer.stage.to_string(), "s3://bucket/stages/x/");
        let Storage::S3 { endpoint, .. } = &transfer.stage.storage else { panic!("S3") };
        assert_eq!(endpoint, "https://bucket.s3.eu-west-1.amazonaws.com");
        let told = transfer.for_client("acme.example", &Access::Token("the-token".to_owned()));
        let told = String::from_utf8(told).unwrap();
        for secret in ["S1", "S2", "T3", "S4", "bucket", "AWS"] {
            assert!(!told.contains(secret), "{secret}: {told}");
        }
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        for stage in ["stageInfo", "uploadInfo"] {
            assert_eq!(told["data"][stage]["endPoint"], "acme.example");
            assert_eq!(told["data"][stage]["creds"]["GCS_ACCESS_TOKEN"], "the-token");
        }
    }

    #[test]
    fn an_upload_by_address_is_of_the_one_file_that_is_named() {
        let bare =
            UPLOAD.replace("/tmp/a*.csv", "a.csv.gz").replace(r#""parallel":4"#, r#""overwrite":true"#);
        let transfer = Transfer::parse(&answer(&bare), "file://a.csv.gz").unwrap();
        assert_eq!((transfer.names.as_slice(), transfer.overwrites), (&["a.csv.gz".to_owned()][..], true));
        let told = transfer.for_client("acme.example", &Access::Address(Some("sealed".to_owned())));
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        let stage = &told["data"]["stageInfo"];
        assert_eq!(stage["presignedUrl"], "https://acme.example/snowfence/files/sealed");
        assert_eq!(stage["creds"], json!({}));
        for several in ["/tmp/a.csv", "*.csv", "a?.csv", "..", ""] {
            let data = UPLOAD.replace("/tmp/a*.csv", several);
            let transfer = Transfer::parse(&answer(&data), several).unwrap();
            assert!(transfer.names.is_empty() && !transfer.overwrites, "{several}");
        }
        assert!(Access::is_by_address("JDBC/4.0.1 (Linux 6.1) JAVA/17"));
        assert!(!Access::is_by_address("PythonConnector/5.2.0"));
    }

    #[test]
    fn the_number_of_a_key_keeps_its_digits() {
        let transfer = Transfer::parse(&answer(UPLOAD), "/tmp/a*.csv").unwrap();
        let told = transfer.for_client("a", &Access::Token(String::new()));
        assert!(String::from_utf8(told).unwrap().contains(r#""smkId":92019681909886123456"#));
    }

    #[test]
    fn a_download_has_an_address_for_each_file() {
        let data = r#"{"command":"DOWNLOAD","src_locations":["a.csv.gz","b/c.csv.gz"],"localLocation":"/tmp/x/","encryptionMaterial":[],"stageInfo":{"locationType":"AZURE","location":"container/p/","storageAccount":"acme","endPoint":"blob.core.windows.net","isClientSideEncrypted":false,"creds":{"AZURE_SAS_TOKEN":"?sig=S"}}}"#;
        let transfer = Transfer::parse(&answer(data), "file:///tmp/x").unwrap();
        assert_eq!(transfer.names, ["a.csv.gz", "b/c.csv.gz"]);
        let Storage::Azure { endpoint, .. } = &transfer.stage.storage else { panic!("Azure") };
        assert_eq!(endpoint, "https://acme.blob.core.windows.net");
        let told = transfer.for_client("a.b", &Access::Addresses(vec!["n1".to_owned(), "n2".to_owned()]));
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(told["data"]["presignedUrls"][1], "https://a.b/snowfence/files/n2");
        assert_eq!(told["data"]["stageInfo"]["creds"], json!({}));
    }

    #[test]
    fn only_the_files_of_the_statement_are_touched() {
        let other = |data: &str, local: &str| Transfer::parse(&answer(data), local).unwrap_err();
        assert_eq!(other(UPLOAD, "file:///tmp/b.csv"), TransferError::OtherFiles);
        let data = UPLOAD.replace(r#"["/tmp/a*.csv"]"#, r#"["/tmp/a*.csv","/root/.ssh/id"]"#);
        assert_eq!(other(&data, "file:///tmp/a*.csv"), TransferError::OtherFiles);
        for name in ["../a", "x/../../a", "..", "", "a//b"] {
            let data = UPLOAD
                .replace("UPLOAD", "DOWNLOAD")
                .replace("/tmp/a*.csv", name)
                .replace(r#""parallel""#, r#""localLocation":"/tmp/","parallel""#);
            assert_eq!(other(&data, "file:///tmp"), TransferError::Outside, "{name}");
        }
        let data = UPLOAD.replace("S3", "LOCAL_FS");
        assert_eq!(other(&data, "/tmp/a*.csv"), TransferError::Storage("LOCAL_FS".to_owned()));
        let data = UPLOAD.replace(r#""endPoint":null"#, r#""endPoint":"evil.example/x""#);
        assert!(Transfer::parse(&answer(&data), "/tmp/a*.csv").is_err());
    }

    #[test]
    fn places_are_the_same_in_every_spelling() {
        assert!(same_place("/tmp/x/", "FILE:///tmp/x"));
        assert!(same_place("C:/data/f", r"file://C:\data\f"));
        assert!(same_place("/", "file:///"));
        assert!(!same_place("/tmp/x", "file:///tmp/x/y"));
        assert!(!same_place("", "/"));
    }

    #[test]
    fn a_file_is_one_part_of_a_path() {
        assert_eq!(file_name("/snowfence/files/f.csv.gz").as_deref(), Some("f.csv.gz"));
        assert_eq!(file_name("/snowfence/files%2Ff%20ü.gz").as_deref(), Some("f ü.gz"));
        for path in [
            "/snowfence/files",
            "/snowfence/files/",
            "/snowfence/files/..",
            "/snowfence/files/a/b",
            "/snowfence/files/a%2fb",
            "/snowfence/files/%00",
            "/snowfence/files/%ff",
            "/snowfence/filesx",
        ] {
            assert_eq!(file_name(path), None, "{path}");
        }
    }
}
