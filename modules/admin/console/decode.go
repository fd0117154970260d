package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Whatever answers need not be a Caddy. A few bytes of JSON become a whole session, so it is not enough to bound the length of an answer.
const (
	maxElements = 1_000_000 // of a list, as many as a page of sessions may have
	maxStatus   = 1 << 20   // bytes
)

// decodeAll decodes a JSON array, and nothing that is none.
func decodeAll[T any](data []byte, all *[]T) error {
	*all = nil
	if data = bytes.TrimSpace(data); len(data) == 0 || data[0] != '[' {
		return errors.New("expected a list")
	}
	from := json.NewDecoder(bytes.NewReader(data))
	if _, err := from.Token(); err != nil {
		return err
	}
	for from.More() {
		if len(*all) == maxElements {
			return fmt.Errorf("expected a list of at most %d", maxElements)
		}
		var one T
		if err := from.Decode(&one); err != nil {
			return err
		}
		*all = append(*all, one)
	}
	return nil
}

// decodeAnswer decodes what the API has answered.
func decodeAnswer(answer []byte, v any) error {
	if err := json.Unmarshal(answer, v); err != nil {
		return notOurs(err)
	}
	return nil
}

func notOurs(err error) error {
	return fmt.Errorf("expected an answer of the admin API of a Caddy that has Portgate: %w", err)
}
