use super::*;
#[test]
fn smoke() {
    assert_eq!(classify("select 1").effect, Effect::Read);
}
