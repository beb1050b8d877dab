"""Checks events, a JSON object a line, against the published schema of OCSF: types, enumerations, what is required, what
there is no attribute for, and that numbers and names say the same.

    ocsf.py EVENTS.jsonl

Prints how many events of which classes are valid, or what is wrong with the first ones that are not, and fails then."""

import collections
import json
import sys

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

MOST_PROBLEMS = 20
OTHER = 99


class Checker:
    def __init__(self):
        self.validators = {}
        self.schemas = {}

    def problems(self, event):
        version, profiles = event["metadata"]["version"], event["metadata"].get("profiles", [])
        if version not in self.schemas:
            self.schemas[version] = get_ocsf_schema(version)
        schema = self.schemas[version]
        names = {one["uid"]: name for name, one in schema["classes"].items()}
        name = names.get(event["class_uid"])
        if name is None:
            return [f"no class has the number {event['class_uid']}"]
        key = (version, name, *profiles)
        if key not in self.validators:
            text = OcsfJsonSchemaEmbedded(schema).get_class_schema(name, profiles)
            jsonschema.Draft202012Validator.check_schema(text)
            self.validators[key] = jsonschema.Draft202012Validator(text)
        found = [
            f"{error.json_path}: {error.message[:300]}" for error in self.validators[key].iter_errors(event)
        ]
        return found + list(self.contradictions(event, schema["classes"][name], schema))

    def contradictions(self, event, described, schema):
        if event["type_uid"] != event["class_uid"] * 100 + event["activity_id"]:
            yield f"type_uid {event['type_uid']} is not of this class and activity"
        if event["category_uid"] != event["class_uid"] // 1000:
            yield f"category_uid {event['category_uid']} is not of this class"
        for number, name in [("activity_id", "activity_name"), ("severity_id", "severity"), ("status_id", "status"),
                             ("action_id", "action"), ("disposition_id", "disposition"), ("type_id", "type"),
                             ("auth_protocol_id", "auth_protocol"), ("class_uid", "class_name"),
                             ("category_uid", "category_name")]:
            if number not in event:
                continue
            known = described["attributes"][number].get("enum", {}).get(str(event[number]))
            if known is None:
                yield f"{number} {event[number]} is none of the schema's"
            elif event.get(name) is None or (event[number] != OTHER and event[name] != known["caption"]):
                yield f"{name} {event.get(name)!r} is not what {number} {event[number]} is called"


def is_strict(checker, event):
    """Whether it finds what is made wrong in an event that it has found valid."""
    wrong = [
        {key: value for key, value in event.items() if key != "time"},
        {**event, "time": "now"},
        {**event, "severity_id": 42},
        {**event, "severity": "Enormous"},
        {**event, "no_such_attribute": 1},
        {**event, "metadata": {**event["metadata"], "product": {"vendor_name": "without a name"}}},
    ]
    return all(checker.problems(one) for one in wrong)


def main(path):
    checker, valid, invalid = Checker(), collections.Counter(), []
    with open(path, encoding="utf-8") as events:
        for number, line in enumerate(events, 1):
            event = json.loads(line)
            found = checker.problems(event)
            if found:
                invalid.append(f"line {number}, class {event.get('class_uid')}: {'; '.join(found[:5])}")
            elif not valid[str(event["class_uid"])] and not is_strict(checker, event):
                sys.exit(f"line {number}: what is wrong with an event of class {event['class_uid']} is not found")
            else:
                valid[str(event["class_uid"])] += 1
    if invalid:
        sys.exit("\n".join([f"{len(invalid)} events are not valid", *invalid[:MOST_PROBLEMS]]))
    print(json.dumps({"valid": valid.total(), "classes": valid}))


if __name__ == "__main__":
    main(*sys.argv[1:])
