//! Results in Arrow, as a table. Snowflake's types are in the metadata of the fields.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{DataType, Field};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::result::{Column, Table};
use super::values;
use crate::audit::payload::hexadecimal;

/// Reads the inline beginning of a result.
pub fn from_base64(text: &str, rows: usize) -> Option<Table> {
    from_stream(STANDARD.decode(text).ok()?, rows)
}

/// Reads a stream of record batches, of which no more than `rows` rows are kept; `None` where it is none.
pub fn from_stream(bytes: Vec<u8>, rows: usize) -> Option<Table> {
    // What is recorded may be anything, and a decoder for trusted data may panic.
    catch_unwind(AssertUnwindSafe(|| read(bytes, rows))).ok().flatten()
}

fn read(bytes: Vec<u8>, most: usize) -> Option<Table> {
    let (mut buffer, mut decoder) = (Buffer::from_vec(bytes), StreamDecoder::new());
    let mut table = Table::default();
    while let Some(batch) = decoder.decode(&mut buffer).ok()? {
        if table.columns.is_empty() {
            table.columns = batch.schema().fields().iter().map(|field| column(field)).collect();
        }
        let room = most - table.rows.len();
        table.cut |= batch.num_rows() > room;
        table.rows.extend((0..batch.num_rows().min(room)).map(|row| cells(&batch, row)));
        if table.cut {
            return Some(table);
        }
    }
    if table.columns.is_empty() {
        table.columns = decoder.schema()?.fields().iter().map(|field| column(field)).collect();
    }
    Some(table)
}

fn column(field: &Field) -> Column {
    let kind =
        metadata(field, "logicalType").map_or_else(|| field.data_type().to_string(), ToOwned::to_owned);
    Column { name: field.name().clone(), kind: kind.to_lowercase() }
}

fn metadata<'f>(field: &'f Field, key: &str) -> Option<&'f str> {
    field.metadata().get(key).map(String::as_str)
}

fn cells(batch: &RecordBatch, row: usize) -> Vec<Option<String>> {
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns());
    fields.map(|(field, array)| (!array.is_null(row)).then(|| cell(field, array.as_ref(), row))).collect()
}

fn cell(field: &Field, array: &dyn Array, row: usize) -> String {
    let kind = metadata(field, "logicalType").unwrap_or_default().to_lowercase();
    let scale = metadata(field, "scale").and_then(|scale| scale.parse().ok()).unwrap_or_default();
    if let DataType::Struct(_) = array.data_type() {
        return composed(&kind, array, row, scale).unwrap_or_else(|| "?".to_owned());
    }
    if let Some(number) = integer(array, row) {
        let nanos = scaled(number, scale);
        return match kind.as_str() {
            "date" => i64::try_from(number).ok().and_then(values::date),
            "time" => nanos.and_then(values::time),
            "timestamp_ntz" | "timestamp_ltz" => nanos.and_then(values::timestamp),
            _ => None,
        }
        .unwrap_or_else(|| values::decimal(number, scale));
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).to_owned(),
        DataType::Binary => hexadecimal(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => hexadecimal(array.as_binary::<i64>().value(row)),
        DataType::Null => String::new(),
        other => format!("[{other}]"),
    }
}

fn integer(array: &dyn Array, row: usize) -> Option<i128> {
    Some(match array.data_type() {
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).into(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value(row),
        _ => return None,
    })
}

/// A timestamp in the parts that it does not fit into one number with.
fn composed(kind: &str, array: &dyn Array, row: usize, scale: usize) -> Option<String> {
    let parts = array.as_struct_opt()?;
    let part = |name: &str| integer(parts.column_by_name(name)?.as_ref(), row);
    let epoch = part("epoch")?;
    let nanos = match part("fraction") {
        Some(fraction) => epoch.checked_mul(1_000_000_000)?.checked_add(fraction)?,
        None => scaled(epoch, scale)?,
    };
    match kind {
        "timestamp_tz" => values::zoned(nanos, i64::try_from(part("timezone")?).ok()?.checked_sub(24 * 60)?),
        _ => values::timestamp(nanos),
    }
}

/// Nanoseconds of a number with `scale` digits after the seconds.
fn scaled(number: i128, scale: usize) -> Option<i128> {
    let missing = u32::try_from(9_usize.checked_sub(scale)?).ok()?;
    number.checked_mul(10_i128.pow(missing))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array, Int64Array, StringArray, StructArray};
    use arrow_ipc::writer::StreamWriter;
    use arrow_schema::Schema;

    use super::*;

    fn field(name: &str, array: &ArrayRef, kind: &str, scale: &str) -> Field {
        let metadata = [("logicalType", kind), ("scale", scale)];
        let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Field::new(name, array.data_type().clone(), true).with_metadata(metadata)
    }

    fn stream() -> Vec<u8> {
        let zoned: Vec<(Arc<Field>, ArrayRef)> = vec![
            (
                Arc::new(Field::new("epoch", DataType::Int64, false)),
                Arc::new(Int64Array::from(vec![1_709_210_096; 2])),
            ),
            (
                Arc::new(Field::new("fraction", DataType::Int32, false)),
                Arc::new(Int32Array::from(vec![5; 2])),
            ),
            (
                Arc::new(Field::new("timezone", DataType::Int32, false)),
                Arc::new(Int32Array::from(vec![1500; 2])),
            ),
        ];
        let columns: Vec<(&str, ArrayRef, &str, &str)> = vec![
            ("N", Arc::new(Int64Array::from(vec![Some(1250), None])), "FIXED", "2"),
            ("T", Arc::new(StringArray::from(vec!["a", "b"])), "TEXT", "0"),
            ("D", Arc::new(Int32Array::from(vec![0, 1])), "DATE", "0"),
            ("S", Arc::new(Int64Array::from(vec![1_709_210_096_000, 0])), "TIMESTAMP_NTZ", "3"),
            ("Z", Arc::new(StructArray::from(zoned)), "TIMESTAMP_TZ", "9"),
        ];
        let fields: Vec<Field> =
            columns.iter().map(|(name, array, kind, scale)| field(name, array, kind, scale)).collect();
        let arrays = columns.into_iter().map(|(_, array, ..)| array).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn each_type_is_shown_as_what_it_is() {
        let table = from_base64(&STANDARD.encode(stream()), 9).unwrap();
        assert_eq!(table.columns[0], Column { name: "N".into(), kind: "fixed".into() });
        let shown: Vec<&str> = table.rows[0].iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
        assert_eq!(
            shown,
            ["12.50", "a", "1970-01-01", "2024-02-29 12:34:56", "2024-02-29 13:34:56.000000005 +01:00"]
        );
        assert_eq!((table.rows[1][0].as_deref(), table.cut), (None, false));
        let short = from_stream(stream(), 1).unwrap();
        assert_eq!((short.rows.len(), short.cut), (1, true));
    }

    #[test]
    fn whatever_comes_is_read_or_not_and_nothing_else_happens() {
        let stream = stream();
        for position in 0..stream.len() {
            let mut changed = stream.clone();
            changed[position] ^= 0x80;
            let _ = from_stream(changed, 9);
            let _ = from_stream(stream[..position].to_vec(), 9);
        }
        assert!(from_stream(b"no arrow at all".to_vec(), 9).is_none());
    }
}
