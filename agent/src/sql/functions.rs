//! What a call of a built-in function does beyond computing a value.
//!
//! Functions that users define are taken for reads: the account's own rights decide what they can reach.

use super::types::{Effect, Feature};

/// What calling the function does, and the feature that tells of it. `name` is dotted and in upper case, without quotes.
pub(super) fn effect(name: &str) -> (Effect, Option<Feature>) {
    let last = name.rsplit(['.', '!']).next().unwrap_or(name);
    if let Some(system) = last.strip_prefix("SYSTEM$") {
        return (system_function(system), Some(Feature::SystemFunction));
    }
    if last == "GET_PRESIGNED_URL" {
        // Who holds the URL can read the file without an account.
        return (Effect::Exfiltration, Some(Feature::Stage));
    }
    let model = last.starts_with("AI_") || name.split('.').any(|part| part == "CORTEX") || name.contains('!');
    if model {
        let effect = if last == "FINETUNE" { Effect::Write } else { Effect::Read };
        return (effect, Some(Feature::AiFunction));
    }
    (Effect::Read, None)
}

/// `SYSTEM$…` functions: those known to read only, those known to send something out; all others are administration.
fn system_function(name: &str) -> Effect {
    match name {
        "SEND_EMAIL" | "SEND_SNOWFLAKE_NOTIFICATION" => Effect::Exfiltration,
        "SET_RETURN_VALUE" => Effect::Session,
        "ALLOWLIST"
        | "ALLOWLIST_PRIVATELINK"
        | "APPLICATION_GET_LOG_LEVEL"
        | "AUTO_REFRESH_STATUS"
        | "BEHAVIOR_CHANGE_BUNDLE_STATUS"
        | "CLIENT_VERSION_INFO"
        | "CLIENT_VULNERABILITY_INFO"
        | "CLUSTERING_DEPTH"
        | "CLUSTERING_INFORMATION"
        | "CLUSTERING_RATIO"
        | "CURRENT_USER_TASK_NAME"
        | "DATABASE_REFRESH_HISTORY"
        | "DATABASE_REFRESH_PROGRESS"
        | "DATABASE_REFRESH_PROGRESS_BY_JOB"
        | "ESTIMATE_AUTOMATIC_CLUSTERING_COSTS"
        | "ESTIMATE_QUERY_ACCELERATION"
        | "ESTIMATE_SEARCH_OPTIMIZATION_COSTS"
        | "EXPLAIN_JSON_TO_TEXT"
        | "EXPLAIN_PLAN_JSON"
        | "EXTERNAL_TABLE_PIPE_STATUS"
        | "GET_CLASSIFICATION_RESULT"
        | "GET_COMPUTE_POOL_PENDING_MAINTENANCE"
        | "GET_ICEBERG_TABLE_INFORMATION"
        | "GET_PREDECESSOR_RETURN_VALUE"
        | "GET_SERVICE_LOGS"
        | "GET_SERVICE_STATUS"
        | "GET_SNOWFLAKE_PLATFORM_INFO"
        | "GET_TAG"
        | "GET_TAG_ALLOWED_VALUES"
        | "GET_TAG_ON_CURRENT_COLUMN"
        | "GET_TAG_ON_CURRENT_TABLE"
        | "GET_TASK_GRAPH_CONFIG"
        | "LAST_CHANGE_COMMIT_TIME"
        | "LIST_ICEBERG_TABLES_FROM_CATALOG"
        | "LIST_NAMESPACES_FROM_CATALOG"
        | "PIPE_STATUS"
        | "REGISTRY_LIST_IMAGES"
        | "SHOW_ACTIVE_BEHAVIOR_CHANGE_BUNDLES"
        | "SHOW_BUDGETS_IN_ACCOUNT"
        | "STREAM_BACKLOG"
        | "STREAM_GET_TABLE_TIMESTAMP"
        | "STREAM_HAS_DATA"
        | "TASK_RUNTIME_INFO"
        | "TYPEOF"
        | "VALIDATE_STORAGE_INTEGRATION"
        | "VERIFY_CATALOG_INTEGRATION"
        | "VERIFY_EXTERNAL_OAUTH_TOKEN"
        | "VERIFY_EXTERNAL_VOLUME"
        | "WAIT"
        | "WHITELIST"
        | "WHITELIST_PRIVATELINK" => Effect::Read,
        _ => Effect::Admin,
    }
}
