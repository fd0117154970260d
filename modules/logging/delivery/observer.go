package delivery

func (o *Observer) put() {
	if o.Put != nil {
		o.Put()
	}
}

func (o *Observer) sent(n int) {
	if o.Sent != nil {
		o.Sent(n)
	}
}

func (o *Observer) dropped(n int, cause Cause, err error) {
	if o.Dropped != nil {
		o.Dropped(n, cause, err)
	}
}

func (o *Observer) failed(err error) {
	if o.Failed != nil {
		o.Failed(err)
	}
}

func (o *Observer) worked() {
	if o.Worked != nil {
		o.Worked()
	}
}
